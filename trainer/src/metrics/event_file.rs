//! TensorBoard event files: scalars as protocol buffers in TFRecord frames.
//!
//! Field numbers are those of TensorFlow's `event.proto` and `summary.proto`. Members of a `oneof`
//! are optional fields here, which is the same on the wire as long as one of them is set.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use super::{EvalRecord, LayerRecord, MetricsError, Record, StepRecord};
use crate::run_folder::EVENT_FILE_PREFIX;

/// `SessionLog.START` of `event.proto`.
const SESSION_START: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// An event file, open for writing. One process writes one file; TensorBoard joins those of a
/// folder.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// A new event file `events.out.tfevents.<unix seconds>.<host>` in `folder`.
    ///
    /// TensorBoard forgets those points of the folder's earlier files that come after
    /// `resumed_from`, the step of the checkpoint that this process continues; `None` means all of
    /// them.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub(super) fn create(
        folder: &Path,
        hostname: &str,
        resumed_from: Option<u64>,
    ) -> Result<Self, MetricsError> {
        // TensorBoard reads a folder's files in the order of their names, and a purge reaches back
        // only: a second start within a second, or a clock set back, must still sort last.
        let secs = match newest_file_secs(folder)? {
            Some(newest) => unix_time().as_secs().max(newest.saturating_add(1)),
            None => unix_time().as_secs(),
        };
        let host: String =
            hostname.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        let path = folder.join(format!("{EVENT_FILE_PREFIX}{secs:010}.{host}"));
        let file = match File::create_new(&path) {
            Ok(file) => file,
            Err(source) => return Err(MetricsError::Io { action: "create", path, source }),
        };
        let mut events = Self { path, file };
        if let Err(error) = events.write_head(resumed_from) {
            // What is begun anew on a full disk must not leave a file each time.
            drop(fs::remove_file(&events.path));
            return Err(error);
        }
        Ok(events)
    }

    fn write_head(&mut self, resumed_from: Option<u64>) -> Result<(), MetricsError> {
        let wall_time = unix_time().as_secs_f64();
        let file_version = Some("brain.Event:2".to_string());
        self.write(&Event { wall_time, file_version, ..Event::default() })?;
        // A START event drops the points whose step is at or above its own: all of them if nothing
        // was resumed, for a run killed before its first checkpoint begins anew in its old folder.
        let step = wire_step(resumed_from.map_or(0, |last_step| last_step + 1));
        let session_log = Some(SessionLog { status: SESSION_START });
        self.write(&Event { wall_time, step, session_log, ..Event::default() })
    }

    /// Adds the scalars of `record`: `train/*`, `validation/*` and `moe/layer_N/*`.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub(super) fn append(&mut self, record: &Record) -> Result<(), MetricsError> {
        let scalars = match record {
            Record::Step(row) => step_scalars(row),
            Record::Eval(row) => eval_scalars(row),
        };
        self.write(&scalar_event(unix_time().as_secs_f64(), record.step(), scalars))
    }

    fn write(&mut self, event: &Event) -> Result<(), MetricsError> {
        self.file.write_all(&record_frame(&event.encode_to_vec())).map_err(|source| MetricsError::Io {
            action: "append to",
            path: self.path.clone(),
            source,
        })
    }
}

/// The `<unix seconds>` of the folder's last event file.
fn newest_file_secs(folder: &Path) -> Result<Option<u64>, MetricsError> {
    let read_error = |source: io::Error| MetricsError::Io { action: "read", path: folder.into(), source };
    let mut newest = None;
    for entry in fs::read_dir(folder).map_err(read_error)? {
        let name = entry.map_err(read_error)?.file_name();
        let secs = name
            .to_str()
            .and_then(|name| name.strip_prefix(EVENT_FILE_PREFIX))
            .and_then(|rest| rest.split('.').next())
            .and_then(|secs| secs.parse::<u64>().ok());
        newest = newest.max(secs);
    }
    Ok(newest)
}

fn unix_time() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A step as the signed number that the format stores.
fn wire_step(step: u64) -> i64 {
    i64::try_from(step).unwrap_or(i64::MAX)
}

fn scalar_event(wall_time: f64, step: u64, scalars: Vec<(String, f64)>) -> Event {
    let value = scalars
        .into_iter()
        .map(|(tag, value)| SummaryValue { tag, simple_value: Some(value as f32) })
        .collect();
    Event { wall_time, step: wire_step(step), summary: Some(Summary { value }), ..Event::default() }
}

fn step_scalars(row: &StepRecord) -> Vec<(String, f64)> {
    let always = [
        ("cross_entropy_nats", Some(row.cross_entropy_nats)),
        ("bits_per_byte", row.bits_per_byte),
        ("total_loss", Some(row.total_loss)),
        ("learning_rate", Some(row.learning_rate)),
        ("grad_norm", Some(row.grad_norm)),
        ("max_attention_logit", row.max_attention_logit),
        ("clipped_heads", row.clipped_heads.map(|number| number as f64)),
        ("tokens_per_sec", Some(row.tokens_per_sec)),
        ("mfu", row.mfu),
    ];
    let losses = row.losses.iter().map(|(name, value)| (name.as_str(), Some(*value)));
    let all = always.into_iter().chain(losses);
    let present = all.filter_map(|(name, value)| Some((format!("train/{name}"), value?)));
    present.chain(row.layers.iter().flat_map(layer_scalars)).collect()
}

fn eval_scalars(row: &EvalRecord) -> Vec<(String, f64)> {
    // The layers of an evaluation stay out: their tags would mix with those of the steps.
    let always = [
        ("cross_entropy_nats", Some(row.cross_entropy_nats)),
        ("bits_per_byte", row.bits_per_byte),
        ("perplexity", Some(row.perplexity)),
    ];
    let of_sources = row
        .sources
        .iter()
        .map(|(name, loss)| (format!("validation/{name}/cross_entropy_nats"), loss.cross_entropy_nats));
    let all = always.into_iter().filter_map(|(name, value)| Some((format!("validation/{name}"), value?)));
    all.chain(of_sources).collect()
}

fn layer_scalars(row: &LayerRecord) -> impl Iterator<Item = (String, f64)> + '_ {
    row.numbers().into_iter().map(|(name, value)| (format!("moe/layer_{}/{name}", row.layer), value))
}

/// `payload` in a TFRecord frame: length, its checksum, payload, its checksum, all little-endian.
fn record_frame(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut frame = Vec::with_capacity(payload.len() + 16);
    frame.extend_from_slice(&length);
    frame.extend_from_slice(&masked_crc(&length).to_le_bytes());
    frame.extend_from_slice(payload);
    frame.extend_from_slice(&masked_crc(payload).to_le_bytes());
    frame
}

/// CRC-32C, rotated and offset as TFRecord wants it, so that a checksum of data that holds
/// checksums stays sound.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{eval, layer, step};
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// CRC-32C a bit at a time, from its polynomial: shares nothing with the table-driven one.
    fn slow_masked_crc(bytes: &[u8]) -> u32 {
        let mut crc = !0u32;
        for &byte in bytes {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
            }
        }
        let crc = !crc;
        (crc >> 15).wrapping_add(crc << 17).wrapping_add(0xa282_ead8)
    }

    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (taken, rest) = bytes.split_at(count);
        *bytes = rest;
        taken
    }

    fn le_u32(bytes: &mut &[u8]) -> u32 {
        u32::from_le_bytes(take(bytes, 4).try_into().unwrap())
    }

    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = take(bytes, 1)[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }

    /// Fields of a message as (number, raw value); every wire type that event files use.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let value = match key & 7 {
                0 => varint(&mut bytes).to_le_bytes().to_vec(),
                1 => take(&mut bytes, 8).to_vec(),
                2 => {
                    let len = varint(&mut bytes) as usize;
                    take(&mut bytes, len).to_vec()
                }
                5 => take(&mut bytes, 4).to_vec(),
                other => panic!("wire type {other}"),
            };
            fields.push((key >> 3, value));
        }
        fields
    }

    fn field(message: &[u8], number: u64) -> Option<Vec<u8>> {
        fields(message).into_iter().find(|(found, _)| *found == number).map(|(_, value)| value)
    }

    /// Payloads of a file's frames, each checksum verified.
    fn payloads(path: &Path) -> Vec<Vec<u8>> {
        let file = fs::read(path).unwrap();
        let mut bytes = file.as_slice();
        let mut payloads = Vec::new();
        while !bytes.is_empty() {
            let length = take(&mut bytes, 8);
            assert_eq!(le_u32(&mut bytes), slow_masked_crc(length));
            let payload = take(&mut bytes, u64::from_le_bytes(length.try_into().unwrap()) as usize);
            assert_eq!(le_u32(&mut bytes), slow_masked_crc(payload));
            payloads.push(payload.to_vec());
        }
        payloads
    }

    fn step_of(event: &[u8]) -> u64 {
        field(event, 2).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
    }

    fn scalars(event: &[u8]) -> Vec<(String, f32)> {
        let values = fields(&field(event, 5).unwrap()).into_iter().map(|(number, value)| {
            assert_eq!(number, 1);
            let tag = String::from_utf8(field(&value, 1).unwrap()).unwrap();
            (tag, f32::from_le_bytes(field(&value, 2).unwrap().try_into().unwrap()))
        });
        values.collect()
    }

    fn event_files(folder: &Path) -> Vec<PathBuf> {
        let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }

    #[test]
    fn frames_are_those_that_tensorboard_writes() {
        // `RecordWriter(file).write(event.SerializeToString())` of the Python package tensorboard
        // 2.21.0, in hexadecimal, for the same three events.
        let wall_time = 1.5;
        let scalars = scalar_event(wall_time, 300, vec![("a/b".into(), 0.25), ("z".into(), 0.0)]);
        assert_eq!(
            hex(&record_frame(&scalars.encode_to_vec())),
            "2400000000000000422b804d09000000000000f83f10ac022a160a0a0a03612f62150000803e0a080a017a15000000009ceef179"
        );
        let version = Event { wall_time, file_version: Some("brain.Event:2".into()), ..Event::default() };
        assert_eq!(
            hex(&record_frame(&version.encode_to_vec())),
            "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c"
        );
        let session_log = Some(SessionLog { status: SESSION_START });
        let start = Event { wall_time, step: 301, session_log, ..Event::default() };
        assert_eq!(
            hex(&record_frame(&start.encode_to_vec())),
            "100000000000000095fbfe1809000000000000f83f10ad023a020801d17949d4"
        );
    }

    #[test]
    fn every_number_of_a_row_is_a_scalar_of_its_step() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(folder.path(), "my.host", None).unwrap();
        let (max_attention_logit, clipped_heads) = (Some(3.5), Some(2));
        let row =
            StepRecord { max_attention_logit, clipped_heads, ..step(300, 2.5, vec![layer(1, &[3, 1])]) };
        file.append(&Record::Step(row)).unwrap();
        file.append(&Record::Eval(eval(300, 3.0))).unwrap();
        let paths = event_files(folder.path());
        assert!(paths[0].to_str().unwrap().ends_with(".my_host"), "{paths:?}");
        let events = payloads(&paths[0]);
        assert_eq!(events.len(), 4);
        assert_eq!(field(&events[0], 3).unwrap(), b"brain.Event:2");
        assert_eq!((step_of(&events[2]), step_of(&events[3])), (300, 300));
        let of_step = scalars(&events[2]);
        for expected in [
            ("train/cross_entropy_nats", 2.5),
            ("train/load_balancing_loss", 1.5),
            ("train/learning_rate", 1e-3),
            ("train/grad_norm", 0.75),
            ("train/max_attention_logit", 3.5),
            ("train/clipped_heads", 2.0),
            ("train/tokens_per_sec", 1024.0),
            ("moe/layer_1/max_violation", 0.5),
            ("moe/layer_1/dropped_fraction", 0.0),
        ] {
            assert!(of_step.contains(&(expected.0.to_string(), expected.1)), "{expected:?} in {of_step:?}");
        }
        assert!(!of_step.iter().any(|(tag, _)| tag == "train/router_z_loss"), "the row had none");
        assert_eq!(scalars(&events[3])[0], ("validation/cross_entropy_nats".to_string(), 3.0));
    }

    #[test]
    fn a_resumed_run_starts_a_later_file_that_purges_the_steps_after_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        // A clock that was ahead: the next file must sort after this one all the same.
        fs::write(folder.path().join("events.out.tfevents.9000000000.host"), "").unwrap();
        EventFile::create(folder.path(), "host", Some(40)).unwrap();
        EventFile::create(folder.path(), "host", Some(60)).unwrap();
        EventFile::create(folder.path(), "host", None).unwrap();
        let paths = event_files(folder.path());
        assert_eq!(paths.len(), 4);
        let expected = [("9000000001", 41), ("9000000002", 61), ("9000000003", 0)];
        for (path, (secs, purged_from)) in paths[1..].iter().zip(expected) {
            assert!(path.to_str().unwrap().contains(secs), "{path:?}");
            let events = payloads(path);
            assert_eq!(step_of(&events[1]), purged_from);
            assert_eq!(field(&field(&events[1], 7).unwrap(), 1).unwrap(), 1u64.to_le_bytes());
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let message = EventFile::create(&folder.path().join("gone"), "host", None).unwrap_err().to_string();
        assert!(message.starts_with("cannot read `") && message.contains("gone`"), "{message}");
    }
}
