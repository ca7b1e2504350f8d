//! The calls that a process made on its folder, as `shim.c` wrote them down.

use std::fs;
use std::path::Path;

/// What can go wrong with a call: the classes of `shim.c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// It changes something: the process can be killed around it.
    Kill = 1,
    /// It writes two bytes or more: half of them can be written.
    Tear = 2,
    /// It needs space on the disk.
    Fill = 4,
    /// The device can fail.
    Fail = 8,
    /// It needs a file descriptor.
    Crowd = 16,
    /// A signal can interrupt it.
    Interrupt = 32,
}

/// What a call changed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operation {
    /// A new, empty file.
    Create,
    /// A file cut, or lengthened by zeros, to so many bytes.
    Truncate(u64),
    /// Bytes at an offset.
    Write { offset: u64, bytes: Vec<u8> },
    /// A file or a folder forced to the disk.
    Sync,
    /// A new folder.
    MakeFolder,
    /// A folder removed.
    RemoveFolder,
    /// A file or a link removed.
    Remove,
    /// Another name.
    Rename { to: String },
    /// A symbolic link.
    Link { target: String },
    /// Nothing: a read, or a call that failed by itself.
    Nothing,
}

/// One call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub(crate) operation: Operation,
    /// Relative to the folder; empty is the folder itself.
    pub(crate) path: String,
    classes: u8,
}

impl Call {
    #[cfg(test)]
    pub(crate) fn new(path: &str, operation: Operation) -> Self {
        Self { operation, path: path.into(), classes: 0 }
    }

    pub(crate) fn can(&self, class: Class) -> bool {
        self.classes & class as u8 != 0
    }
}

/// Bytes before the path of a record.
const HEAD_BYTES: usize = 22;

/// All calls in the log at `path`.
pub(crate) fn read(path: &Path) -> Vec<Call> {
    let log = fs::read(path).unwrap();
    let mut rest = log.as_slice();
    let mut calls = Vec::new();
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(HEAD_BYTES);
        let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap()) as usize;
        let offset = u64::from_le_bytes(head[14..22].try_into().unwrap());
        let (path, tail) = tail.split_at(number(2));
        let (second, tail) = tail.split_at(number(6));
        let (data, tail) = tail.split_at(number(10));
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let operation = match head[0] {
            b'c' => Operation::Create,
            b't' => Operation::Truncate(offset),
            b'w' => Operation::Write { offset, bytes: data.to_vec() },
            b's' => Operation::Sync,
            b'm' => Operation::MakeFolder,
            b'd' => Operation::RemoveFolder,
            b'u' => Operation::Remove,
            b'n' => Operation::Rename { to: text(second) },
            b'l' => Operation::Link { target: text(second) },
            b'-' => Operation::Nothing,
            other => panic!("`{}` is an operation that the model does not know", other as char),
        };
        calls.push(Call { operation, path: text(path), classes: head[1] });
        rest = tail;
    }
    calls
}
