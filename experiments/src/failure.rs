//! From any error to one message and an exit code.

use std::error::Error;
use std::io;
use std::panic;
use std::process::ExitCode;

use switchyard_datasets::DatasetError;
use switchyard_ground::printable::printable;
use switchyard_ground::say;
use switchyard_hub::HubError;
use switchyard_trainer::TrainError;
use switchyard_trainer::checkpoint::CheckpointError;
use switchyard_trainer::config_file::ConfigError;
use switchyard_trainer::metrics::MetricsError;
use switchyard_trainer::run_folder::RunFolderError;

use crate::interrupt::Interruption;

/// Characters of a message that are printed.
const MAX_MESSAGE_CHARS: usize = 4000;

/// Why a command ended without its result.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The user can mend it: exit code 2.
    Mistake(String),
    /// Anything else: exit code 1.
    Fault(anyhow::Error),
    /// The user stopped it, and what there was to save is saved: the exit code says by which
    /// signal.
    Interrupted(String),
    /// Whoever read our output went away, as `head` does; nothing to say.
    ClosedPipe,
}

impl Failure {
    /// What to tell the user. Text of others, such as names in a run's files, reaches no terminal
    /// as it is.
    pub(crate) fn message(&self) -> Option<String> {
        let message = match self {
            Self::Mistake(message) => format!("error: {message}"),
            Self::Fault(error) => format!("error: {error:#}"),
            Self::Interrupted(message) => message.clone(),
            Self::ClosedPipe => return None,
        };
        Some(shortened(&printable(&message)))
    }

    /// An interruption of work that lies on the disk piece by piece.
    pub(crate) fn interrupted_work() -> Self {
        Self::Interrupted("interrupted; the same command goes on from here".into())
    }

    /// The same; an interruption as [`Failure::interrupted_work`], wherever it came.
    pub(crate) fn of_kept_work(self) -> Self {
        if let Self::Interrupted(_) = self { Self::interrupted_work() } else { self }
    }

    /// The process's exit code.
    pub(crate) fn exit_code(&self, interruption: &Interruption) -> ExitCode {
        match self {
            Self::Mistake(_) => ExitCode::from(2),
            // A terminal that closes sends the signal and refuses the output at once.
            Self::Fault(_) | Self::ClosedPipe if interruption.has_come() => {
                ExitCode::from(interruption.exit_code())
            }
            Self::Fault(error) if error.chain().any(is_of_a_bad_path) => ExitCode::from(2),
            Self::Fault(_) => ExitCode::from(1),
            Self::Interrupted(_) => ExitCode::from(interruption.exit_code()),
            Self::ClosedPipe => ExitCode::SUCCESS,
        }
    }
}

/// `message` as far as a person reads: causes may quote a whole file of others.
fn shortened(message: &str) -> String {
    match message.char_indices().nth(MAX_MESSAGE_CHARS) {
        Some((end, _)) => format!("{}...", &message[..end]),
        None => message.into(),
    }
}

/// Whether another path, other permissions or some free space help.
fn is_of_a_bad_path(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| {
        matches!(
            error.kind(),
            io::ErrorKind::NotFound
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::AlreadyExists
                | io::ErrorKind::IsADirectory
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::DirectoryNotEmpty
                | io::ErrorKind::InvalidFilename
                | io::ErrorKind::ReadOnlyFilesystem
                | io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::FileTooLarge
        )
    })
}

/// Our own errors quote their causes, so the message alone is kept.
fn of(is_users_mistake: bool, error: &dyn Error) -> Failure {
    let message = error.to_string();
    if is_users_mistake { Failure::Mistake(message) } else { Failure::Fault(anyhow::Error::msg(message)) }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        of(true, &error)
    }
}

impl From<DatasetError> for Failure {
    fn from(error: DatasetError) -> Self {
        TrainError::from(error).into()
    }
}

impl From<RunFolderError> for Failure {
    fn from(error: RunFolderError) -> Self {
        TrainError::from(error).into()
    }
}

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        TrainError::from(error).into()
    }
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        TrainError::from(error).into()
    }
}

impl From<MetricsError> for Failure {
    fn from(error: MetricsError) -> Self {
        TrainError::from(error).into()
    }
}

impl From<TrainError> for Failure {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Output { source } => source.into(),
            TrainError::Data(DatasetError::Interrupted) | TrainError::Interrupted => {
                Self::Interrupted(error.to_string())
            }
            TrainError::RunFolder(RunFolderError::Io { ref source, .. }) => {
                of(error.is_users_mistake() || is_of_a_bad_path(source), &error)
            }
            TrainError::Hub(HubError::Io { ref source, .. }) => of(is_of_a_bad_path(source), &error),
            error => of(error.is_users_mistake(), &error),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::ClosedPipe } else { Self::Fault(error.into()) }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        io::Error::from(error).into()
    }
}

/// Have a panic, which is always our bug, say so in one message instead of a backtrace; `end_job` says
/// it where other processes would wait for this one, and does not return.
pub(crate) fn report_panics_as_errors(end_job: fn(&str)) {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if switchyard_datasets::panic_becomes_error() {
            return;
        }
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            default(info);
        }
        let place = info
            .location()
            .map_or_else(String::new, |place| format!(" at {}:{}", place.file(), place.line()));
        let what = info.payload_as_str().unwrap_or("no message");
        let message = format!(
            "error: a bug in switchyard{place}: {what}\nCheckpoints on disk are intact: `--resume` goes on from the \
             newest. Please report this message with the configuration; RUST_BACKTRACE=1 adds where it happened."
        );
        end_job(&message);
        say!("{message}");
    }));
}
