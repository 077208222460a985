//! Scalars over time as TensorBoard reads them.
//!
//! Source: TensorFlow's `event.proto` and `summary.proto`, and its record format
//! (`tensorflow/core/lib/io/record_writer.h`). Own code, because the crates for it bring protobuf
//! and image libraries with known holes.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
    time::SystemTime,
};

use prost::Message;

/// What the first record of a file says.
const FILE_VERSION: &str = "brain.Event:2";

/// `SessionLog.SessionStatus.START`: what an earlier file has of later steps does not count.
const START: i32 = 1;

/// An event file that is being written.
#[derive(Debug)]
pub struct EventFile {
    file: File,
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since the Unix epoch.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
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

impl EventFile {
    /// Begins a further file in a folder, which it makes.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn create(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let since_epoch = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        // TensorBoard reads files in the order of their names.
        let name = format!(
            "events.out.tfevents.{:010}.{:09}.{}",
            since_epoch.as_secs(),
            since_epoch.subsec_nanos(),
            std::process::id()
        );
        let file = File::options()
            .create_new(true)
            .append(true)
            .open(dir.join(name))?;
        let mut events = Self { file };
        events.write(0, What::FileVersion(FILE_VERSION.to_owned()))?;
        Ok(events)
    }

    /// Takes back what earlier files say of steps after this one.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn rewind(&mut self, step: u64) -> io::Result<()> {
        self.write(step + 1, What::SessionLog(SessionLog { status: START }))
    }

    /// Values of some tags at a step.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> io::Result<()> {
        let value = values.iter().map(|(tag, value)| Value {
            tag: (*tag).to_owned(),
            simple_value: Some(*value as f32),
        });
        let summary = Summary {
            value: value.collect(),
        };
        self.write(step, What::Summary(summary))
    }

    fn write(&mut self, step: u64, what: What) -> io::Result<()> {
        let since_epoch = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let event = Event {
            wall_time: since_epoch.as_secs_f64(),
            step: step as i64,
            what: Some(what),
        };
        // In one call, so that a reader never sees half of a length.
        self.file.write_all(&record(&event.encode_to_vec()))
    }
}

/// Length, its checksum, the data, their checksum.
fn record(data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u64).to_le_bytes();
    [
        &len[..],
        &masked_crc(&len).to_le_bytes(),
        data,
        &masked_crc(data).to_le_bytes(),
    ]
    .concat()
}

/// A checksum that may stand among what it is the checksum of.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events of a file, as a reader that checks every sum finds them.
    fn events(mut bytes: &[u8]) -> Vec<Event> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_at(12);
            let len = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
            assert_eq!(head[8..], masked_crc(&head[..8]).to_le_bytes());
            let (data, rest) = rest.split_at(len);
            let (sum, rest) = rest.split_at(4);
            assert_eq!(sum, masked_crc(data).to_le_bytes());
            found.push(Event::decode(data).unwrap());
            bytes = rest;
        }
        found
    }

    #[test]
    fn a_file_holds_its_version_the_scalars_and_what_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(dir.path()).unwrap();
        file.rewind(6).unwrap();
        file.scalars(10, &[("loss", 0.5), ("auc", 0.75)]).unwrap();
        let path = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap();
        let found = events(&fs::read(path.path()).unwrap());
        assert_eq!(found.len(), 3);
        assert_eq!(
            found[0].what,
            Some(What::FileVersion("brain.Event:2".into()))
        );
        assert_eq!(
            (found[1].step, &found[1].what),
            (7, &Some(What::SessionLog(SessionLog { status: START })))
        );
        let Some(What::Summary(summary)) = &found[2].what else {
            panic!("{found:?}");
        };
        let values = summary.value.iter();
        let values: Vec<_> = values
            .map(|value| (value.tag.as_str(), value.simple_value))
            .collect();
        assert_eq!(values, [("loss", Some(0.5)), ("auc", Some(0.75))]);
    }

    #[test]
    fn the_checksum_is_that_of_the_format() {
        // The length 24 and its checksum, as TensorFlow writes them before a file's first record.
        let head = record(&[0; 24]);
        assert_eq!(
            head[..12],
            [24, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]
        );
    }
}
