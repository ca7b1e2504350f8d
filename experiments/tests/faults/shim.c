// Loaded before the C library (LD_PRELOAD): counts the file-system calls of one process on one folder, writes them down, or makes
// the n-th of them go wrong.
//
// FAULTS_FOLDER  only calls on paths below this folder count; absolute, without links
// FAULTS_LOG     file for one record per counted call, see `log_call`; read by call_log.rs
// FAULTS_KIND    what goes wrong, a name of the table `kinds`
// FAULTS_AT      at which of the calls to which it can happen, from 1
// FAULTS_FIRED   file for one line that says which call it was
// FAULTS_TICK_MS by how much each reading of the monotonic clock puts it forward
//
// Children do not inherit it. The originals are called as system calls, so nothing is looked up and nothing allocates.

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

// What can happen to a call: the classes of call_log.rs.
enum { KILL = 1, TEAR = 2, FILL = 4, FAIL = 8, CROWD = 16, INTERRUPT = 32 };

enum effect { NOTHING, DIE_BEFORE, DIE_HALFWAY, DIE_AFTER, SHORTEN, REFUSE };

static const struct kind { const char *name; int class; enum effect effect; int error; int from_then_on; } kinds[] = {
    {"kill-before", KILL, DIE_BEFORE, 0, 0},
    {"kill-halfway", TEAR, DIE_HALFWAY, 0, 0},
    {"kill-after", KILL, DIE_AFTER, 0, 0},
    {"disk-full", FILL, REFUSE, ENOSPC, 1},
    {"disk-full-once", FILL, REFUSE, ENOSPC, 0},
    {"io-error-once", FAIL, REFUSE, EIO, 0},
    {"no-descriptor-once", CROWD, REFUSE, EMFILE, 0},
    {"interrupted-once", INTERRUPT, REFUSE, EINTR, 0},
    {"short-write", TEAR, SHORTEN, 0, 0},
};

static char folder[PATH_MAX];
static size_t folder_len;
static pid_t process;
static const struct kind *kind;
static long fault_at, calls_of_class;
static int log_fd = -1;
static char fired_path[PATH_MAX];
static long tick_ms;
static atomic_long clock_readings;
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void start(void) {
    const char *value;
    unsetenv("LD_PRELOAD");
    if ((value = getenv("FAULTS_TICK_MS"))) tick_ms = atol(value);
    if (!(value = getenv("FAULTS_FOLDER"))) return;
    folder_len = (size_t)snprintf(folder, sizeof folder, "%s", value);
    process = getpid();
    if ((value = getenv("FAULTS_LOG")))
        log_fd = (int)syscall(SYS_openat, AT_FDCWD, value, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    if ((value = getenv("FAULTS_FIRED"))) snprintf(fired_path, sizeof fired_path, "%s", value);
    if ((value = getenv("FAULTS_AT"))) fault_at = atol(value);
    if ((value = getenv("FAULTS_KIND")))
        for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
            if (!strcmp(kinds[i].name, value)) kind = &kinds[i];
}

// ---- which calls count ----

// Writes what `path` means, made absolute and free of `.`, `..` and doubled `/`, to `out`; 0 if that is not below the folder.
static int locate(int dir, const char *path, char out[PATH_MAX]) {
    char whole[2 * PATH_MAX];
    if (!folder_len || !path || (size_t)strnlen(path, PATH_MAX) >= PATH_MAX) return 0;
    if (getpid() != process) return 0; // A child that has not yet become another program.
    size_t len = 0;
    if (*path != '/') {
        char link[64];
        snprintf(link, sizeof link, dir == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dir);
        ssize_t got = syscall(SYS_readlinkat, AT_FDCWD, link, whole, (size_t)PATH_MAX - 1);
        if (got <= 0) return 0;
        len = (size_t)got;
        whole[len++] = '/';
    }
    strcpy(whole + len, path);
    size_t end = 0;
    for (char *part = whole; *part;) {
        size_t size = strcspn(part, "/");
        if (size == 2 && part[0] == '.' && part[1] == '.') {
            while (end && out[--end] != '/') {}
        } else if (size && !(size == 1 && *part == '.')) {
            if (end + size + 2 > PATH_MAX) return 0;
            out[end++] = '/';
            memcpy(out + end, part, size);
            end += size;
        }
        part += size + (part[size] == '/');
    }
    out[end] = 0;
    return !strncmp(out, folder, folder_len) && (out[folder_len] == '/' || !out[folder_len]);
}

// The same for an open descriptor, under the name that the file has now.
static int locate_fd(int fd, char out[PATH_MAX]) {
    if (!folder_len || getpid() != process) return 0;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t got = syscall(SYS_readlinkat, AT_FDCWD, link, out, (size_t)PATH_MAX - 1);
    if (got <= 0) return 0;
    out[got] = 0;
    return !strncmp(out, folder, folder_len) && (out[folder_len] == '/' || !out[folder_len]);
}

// ---- what happens to them ----

static void die(void) {
    for (;;) syscall(SYS_kill, process, SIGKILL);
}

static void say_fired(const char *call, const char *path) {
    char line[PATH_MAX + 64];
    int len = snprintf(line, sizeof line, "%s %s\n", call, path + folder_len + (path[folder_len] == '/'));
    int fd = (int)syscall(SYS_openat, AT_FDCWD, fired_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    syscall(SYS_write, fd, line, (size_t)len);
    syscall(SYS_close, fd);
}

// Counts a call, under the lock; returns what is to happen to it.
static enum effect next_effect(int classes, const char *call, const char *path) {
    if (!kind || !(kind->class & classes)) return NOTHING;
    calls_of_class++;
    if (calls_of_class != fault_at && !(kind->from_then_on && calls_of_class > fault_at)) return NOTHING;
    if (calls_of_class == fault_at) say_fired(call, path);
    return kind->effect;
}

// One record: operation, classes, lengths and offset, then path, second path and data. The operation says what changed:
// c file created, t truncated to `offset`, w written at `offset`, s forced to the disk, m and d folder made and removed, u file
// removed, n renamed to the second path, l link `path` with the target `second`, h second name of a file, - nothing.
static void log_call(char operation, int classes, const char *path, const char *second, uint64_t offset,
                     const struct iovec *data, int num_data, size_t data_len) {
    if (log_fd < 0) return;
    const char *name = path + folder_len + (path[folder_len] == '/');
    if (operation == 'n' || operation == 'h') second += folder_len + 1;
    struct __attribute__((packed)) { uint8_t operation, classes; uint32_t path, second, data; uint64_t offset; } head = {
        (uint8_t)operation, (uint8_t)classes, (uint32_t)strlen(name), second ? (uint32_t)strlen(second) : 0,
        (uint32_t)data_len, offset};
    syscall(SYS_write, log_fd, &head, sizeof head);
    syscall(SYS_write, log_fd, name, (size_t)head.path);
    if (second) syscall(SYS_write, log_fd, second, (size_t)head.second);
    for (int i = 0; i < num_data && data_len; i++) {
        size_t len = data[i].iov_len < data_len ? data[i].iov_len : data_len;
        syscall(SYS_write, log_fd, data[i].iov_base, len);
        data_len -= len;
    }
}

// Does a call that either happens or not, with what is to happen around it.
#define CALL(classes, name, path, second, operation, system_call)                         \
    pthread_mutex_lock(&order);                                                           \
    enum effect effect = next_effect(classes, name, path);                                \
    if (effect == DIE_BEFORE) die();                                                      \
    long result = -1;                                                                     \
    if (effect == REFUSE) errno = kind->error;                                            \
    else result = system_call;                                                            \
    if (effect == DIE_AFTER) die();                                                       \
    int error = errno;                                                                    \
    log_call(result < 0 ? '-' : (operation), classes, path, second, 0, NULL, 0, 0);       \
    pthread_mutex_unlock(&order);                                                         \
    errno = error;                                                                        \
    return (int)result

// ---- names ----

static int open_at(int dir, const char *path, int flags, mode_t mode) {
    char where[PATH_MAX];
    if (!locate(dir, path, where)) return (int)syscall(SYS_openat, dir, path, flags, mode);
    int reads_only = (flags & O_ACCMODE) == O_RDONLY && !(flags & O_CREAT);
    struct stat before;
    int is_new = (flags & O_CREAT) && fstatat(AT_FDCWD, where, &before, 0) != 0;
    int classes = FAIL | CROWD | INTERRUPT | (reads_only ? 0 : KILL) | (is_new ? FILL : 0);
    int truncates = !is_new && (flags & O_TRUNC);
    CALL(classes, "open", where, NULL, is_new ? 'c' : truncates ? 't' : '-', syscall(SYS_openat, dir, path, flags, mode));
}

#define OPEN(flags)                                       \
    va_list arguments;                                    \
    va_start(arguments, flags);                           \
    mode_t mode = (flags) & (O_CREAT | __O_TMPFILE) ? va_arg(arguments, mode_t) : 0; \
    va_end(arguments)

int open(const char *path, int flags, ...) { OPEN(flags); return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { OPEN(flags); return open_at(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { OPEN(flags); return open_at(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { OPEN(flags); return open_at(dir, path, flags, mode); }
int creat(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode); }

DIR *opendir(const char *path) {
    char where[PATH_MAX];
    DIR *(*original)(const char *) = (DIR *(*)(const char *))dlsym(RTLD_NEXT, "opendir");
    if (!locate(AT_FDCWD, path, where)) return original(path);
    pthread_mutex_lock(&order);
    enum effect effect = next_effect(FAIL | CROWD, "opendir", where);
    log_call('-', FAIL | CROWD, where, NULL, 0, NULL, 0, 0);
    pthread_mutex_unlock(&order);
    if (effect == REFUSE) { errno = kind->error; return NULL; }
    return original(path);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    char where[PATH_MAX], target[PATH_MAX];
    if (!locate(from_dir, from, where) || !locate(to_dir, to, target))
        return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
    CALL(KILL | FILL | FAIL, "rename", where, target, 'n', syscall(SYS_renameat2, from_dir, from, to_dir, to, flags));
}
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_dir, const char *from, int to_dir, const char *to) { return renameat2(from_dir, from, to_dir, to, 0); }

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    char where[PATH_MAX], target[PATH_MAX];
    if (!locate(from_dir, from, where) || !locate(to_dir, to, target))
        return (int)syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
    CALL(KILL | FILL | FAIL, "link", where, target, 'h', syscall(SYS_linkat, from_dir, from, to_dir, to, flags));
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int symlinkat(const char *target, int dir, const char *path) {
    char where[PATH_MAX];
    if (!locate(dir, path, where)) return (int)syscall(SYS_symlinkat, target, dir, path);
    CALL(KILL | FILL | FAIL, "symlink", where, target, 'l', syscall(SYS_symlinkat, target, dir, path));
}
int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }

int mkdirat(int dir, const char *path, mode_t mode) {
    char where[PATH_MAX];
    if (!locate(dir, path, where)) return (int)syscall(SYS_mkdirat, dir, path, mode);
    CALL(KILL | FILL | FAIL, "mkdir", where, NULL, 'm', syscall(SYS_mkdirat, dir, path, mode));
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int unlinkat(int dir, const char *path, int flags) {
    char where[PATH_MAX];
    if (!locate(dir, path, where)) return (int)syscall(SYS_unlinkat, dir, path, flags);
    char operation = flags & AT_REMOVEDIR ? 'd' : 'u';
    CALL(KILL | FAIL, operation == 'd' ? "rmdir" : "unlink", where, NULL, operation, syscall(SYS_unlinkat, dir, path, flags));
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

// ---- bytes ----

static int sync_fd(int fd, long number) {
    char where[PATH_MAX];
    if (!locate_fd(fd, where)) return (int)syscall(number, fd);
    CALL(KILL | FILL | FAIL | INTERRUPT, "fsync", where, NULL, 's', syscall(number, fd));
}
int fsync(int fd) { return sync_fd(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_fd(fd, SYS_fdatasync); }

int ftruncate64(int fd, off64_t length) {
    char where[PATH_MAX];
    if (!locate_fd(fd, where)) return (int)syscall(SYS_ftruncate, fd, length);
    int classes = KILL | FILL | FAIL | INTERRUPT;
    pthread_mutex_lock(&order);
    enum effect effect = next_effect(classes, "ftruncate", where);
    if (effect == DIE_BEFORE) die();
    long result = -1;
    if (effect == REFUSE) errno = kind->error;
    else result = syscall(SYS_ftruncate, fd, length);
    if (effect == DIE_AFTER) die();
    int error = errno;
    log_call(result < 0 ? '-' : 't', classes, where, NULL, (uint64_t)length, NULL, 0, 0);
    pthread_mutex_unlock(&order);
    errno = error;
    return (int)result;
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

// Where the next byte of `fd` goes.
static uint64_t write_offset(int fd) {
    struct stat now;
    if (syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND) return fstat(fd, &now) ? 0 : (uint64_t)now.st_size;
    off_t offset = lseek(fd, 0, SEEK_CUR);
    return offset < 0 ? 0 : (uint64_t)offset;
}

static ssize_t put(int fd, const struct iovec *data, int num_data, off64_t at) {
    if (at < 0) return syscall(SYS_writev, fd, data, num_data);
    return syscall(SYS_pwrite64, fd, data->iov_base, data->iov_len, at);
}

// Writes `data` at offset `at`, or where the descriptor stands if that is negative.
static ssize_t write_fd(int fd, const struct iovec *data, int num_data, off64_t at) {
    char where[PATH_MAX];
    if (!locate_fd(fd, where)) return put(fd, data, num_data, at);
    int can_tear = num_data > 0 && data->iov_len > 1;
    int classes = KILL | FILL | FAIL | INTERRUPT | (can_tear ? TEAR : 0);
    pthread_mutex_lock(&order);
    enum effect effect = next_effect(classes, "write", where);
    if (effect == DIE_BEFORE) die();
    uint64_t offset = at < 0 ? write_offset(fd) : (uint64_t)at;
    ssize_t result = -1;
    if (effect == REFUSE) {
        errno = kind->error;
    } else if (effect == DIE_HALFWAY || effect == SHORTEN) {
        struct iovec half = {data->iov_base, data->iov_len / 2};
        result = put(fd, &half, 1, at);
    } else {
        result = put(fd, data, num_data, at);
    }
    if (effect == DIE_AFTER || effect == DIE_HALFWAY) die();
    int error = errno;
    log_call(result < 0 ? '-' : 'w', classes, where, NULL, offset, data, num_data, result < 0 ? 0 : (size_t)result);
    pthread_mutex_unlock(&order);
    errno = error;
    return result;
}
ssize_t write(int fd, const void *bytes, size_t len) {
    struct iovec data = {(void *)bytes, len};
    return write_fd(fd, &data, 1, -1);
}
ssize_t writev(int fd, const struct iovec *data, int num_data) { return write_fd(fd, data, num_data, -1); }
ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t at) {
    struct iovec data = {(void *)bytes, len};
    return write_fd(fd, &data, 1, at);
}
ssize_t pwrite(int fd, const void *bytes, size_t len, off_t at) { return pwrite64(fd, bytes, len, at); }

// Copies inside the kernel are refused for files of the folder: the callers fall back to reading and writing, which is seen.
ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t len, unsigned flags) {
    char where[PATH_MAX];
    if (!locate_fd(out, where)) return syscall(SYS_copy_file_range, in, in_at, out, out_at, len, flags);
    errno = ENOSYS;
    return -1;
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t len) {
    char where[PATH_MAX];
    if (!locate_fd(out, where)) return syscall(SYS_sendfile, out, in, at, len);
    errno = ENOSYS;
    return -1;
}
ssize_t sendfile(int out, int in, off_t *at, size_t len) { return sendfile64(out, in, at, len); }

// Whether a read is to fail.
static int read_fails(int fd) {
    char where[PATH_MAX];
    if (!locate_fd(fd, where)) return 0;
    pthread_mutex_lock(&order);
    enum effect effect = next_effect(FAIL | INTERRUPT, "read", where);
    log_call('-', FAIL | INTERRUPT, where, NULL, 0, NULL, 0, 0);
    pthread_mutex_unlock(&order);
    if (effect == REFUSE) errno = kind->error;
    return effect == REFUSE;
}
ssize_t read(int fd, void *bytes, size_t len) { return read_fails(fd) ? -1 : syscall(SYS_read, fd, bytes, len); }
ssize_t readv(int fd, const struct iovec *data, int num_data) {
    return read_fails(fd) ? -1 : syscall(SYS_readv, fd, data, num_data);
}
ssize_t pread64(int fd, void *bytes, size_t len, off64_t at) {
    return read_fails(fd) ? -1 : syscall(SYS_pread64, fd, bytes, len, at);
}
ssize_t pread(int fd, void *bytes, size_t len, off_t at) { return pread64(fd, bytes, len, at); }

// ---- time ----

// Goes forward with each look at it: what the program does for a fixed time, such as measuring the processor's speed, would
// otherwise be all that a fault costs. By looks and not by a factor, so that a busy machine does not take the time away.
int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = (int)syscall(SYS_clock_gettime, clock, time);
    if (result || clock != CLOCK_MONOTONIC || !tick_ms) return result;
    int64_t skipped_ms = tick_ms * (1 + atomic_fetch_add(&clock_readings, 1));
    int64_t nanos = time->tv_nsec + skipped_ms % 1000 * 1000000;
    time->tv_sec += skipped_ms / 1000 + nanos / 1000000000;
    time->tv_nsec = nanos % 1000000000;
    return 0;
}
