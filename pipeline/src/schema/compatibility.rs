//! Which changes of a Protobuf schema lose nothing.
//!
//! The rules are those of the Protobuf language guide ("Updating A Message Type"), as strict as
//! `buf breaking` at the level of the wire: who reads by one schema what was written by another must
//! find every value that was there, with the meaning it had. Beyond the wire, a number that was given up
//! must be reserved, since nothing else keeps it from being given to something new.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    field_descriptor_proto::{Label, Type},
};
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver};

use super::{Level, SchemaError};

/// Compiles the text of one file; it may import Google's well-known types and nothing else.
///
/// # Errors
/// [`SchemaError::Malformed`] with `what` in it.
pub fn parse(what: &str, text: &str) -> Result<FileDescriptorProto, SchemaError> {
    const NAME: &str = "schema.proto";
    let malformed = |error: &protox::Error| SchemaError::Malformed {
        what: what.to_owned(),
        why: error.to_string(),
    };
    let mut files = ChainFileResolver::new();
    files.add(OneFile(
        File::from_source(NAME, text).map_err(|error| malformed(&error))?,
    ));
    files.add(GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(files);
    compiler
        .open_file(NAME)
        .map_err(|error| malformed(&error))?;
    let mut file = compiler.file_descriptor_set().file;
    // The compiler gives the files it was told of.
    let mut file = file.pop().unwrap_or_default();
    file.source_code_info = None;
    Ok(file)
}

struct OneFile(File);

impl FileResolver for OneFile {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match name == self.0.name() {
            true => Ok(File::from_file_descriptor_proto(
                self.0.file_descriptor_proto().clone(),
            )),
            false => Err(protox::Error::file_not_found(name)),
        }
    }
}

/// Every breach of a rule by a schema that comes after others, the last one last.
pub fn breaks(
    level: Level,
    before: &[FileDescriptorProto],
    new: &FileDescriptorProto,
) -> Vec<String> {
    if level == Level::None {
        return Vec::new();
    }
    let measured = match level.transitive() {
        true => before,
        false => &before[before.len().saturating_sub(1)..],
    };
    let mut found = BTreeSet::new();
    for old in measured {
        let (old, new) = (Types::of(old), Types::of(new));
        if level.backward() {
            found.extend(lost(&old, &new, "old"));
        }
        if level.forward() {
            found.extend(lost(&new, &old, "new"));
        }
        found.extend(given_up(&old, &new));
    }
    found.into_iter().collect()
}

/// Messages and enums of a file by their full names.
struct Types<'a> {
    messages: BTreeMap<String, &'a DescriptorProto>,
    enums: BTreeMap<String, &'a EnumDescriptorProto>,
}

impl<'a> Types<'a> {
    fn of(file: &'a FileDescriptorProto) -> Self {
        let mut types = Self {
            messages: BTreeMap::new(),
            enums: BTreeMap::new(),
        };
        let package = file.package();
        let prefix = match package.is_empty() {
            true => String::new(),
            false => format!("{package}."),
        };
        types.add(&prefix, &file.message_type, &file.enum_type);
        types
    }

    fn add(
        &mut self,
        prefix: &str,
        messages: &'a [DescriptorProto],
        enums: &'a [EnumDescriptorProto],
    ) {
        for message in messages {
            let name = format!("{prefix}{}", message.name());
            self.add(
                &format!("{name}."),
                &message.nested_type,
                &message.enum_type,
            );
            self.messages.insert(name, message);
        }
        for it in enums {
            self.enums.insert(format!("{prefix}{}", it.name()), it);
        }
    }
}

fn field(message: &DescriptorProto, number: i32) -> Option<&FieldDescriptorProto> {
    message.field.iter().find(|it| it.number() == number)
}

/// What `reader` does not get of what `writer` writes, which is the `which` one of two schemas.
fn lost(writer: &Types<'_>, reader: &Types<'_>, which: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (name, written) in &writer.messages {
        let Some(read) = reader.messages.get(name) else {
            // Who has never heard of a message skips it; who has and forgot it loses it.
            if which == "old" {
                found.push(format!(
                    "message {name} is gone: keep it, even if nothing sends it"
                ));
            }
            continue;
        };
        for wrote in &written.field {
            if let Some(reads) = field(read, wrote.number()) {
                found.extend(change(name, (written, wrote), (read, reads), which));
            }
        }
    }
    for (name, written) in &writer.enums {
        let Some(read) = reader.enums.get(name) else {
            if which == "old" {
                found.push(format!(
                    "enum {name} is gone: keep it, even if nothing sends it"
                ));
            }
            continue;
        };
        for value in &written.value {
            let same = read.value.iter().find(|it| it.number() == value.number());
            if let Some(same) = same.filter(|same| same.name() != value.name()) {
                let (number, before, after) = match which {
                    "old" => (value.number(), value.name(), same.name()),
                    _ => (value.number(), same.name(), value.name()),
                };
                found.push(format!(
                    "value {number} of enum {name} was {before} and is {after}: give the new meaning a \
                     new number"
                ));
            }
        }
    }
    found
}

/// Why a field's values do not come over, if they do not.
fn change(
    message: &str,
    (written, wrote): (&DescriptorProto, &FieldDescriptorProto),
    (read, reads): (&DescriptorProto, &FieldDescriptorProto),
    which: &str,
) -> Option<String> {
    let number = wrote.number();
    let told = |what: String| {
        let name = match which {
            "old" => wrote.name(),
            _ => reads.name(),
        };
        Some(format!(
            "field {number} ({name}) of {message} {what}: leave it, and add another with a new number"
        ))
    };
    let (from, to) = (described(wrote), described(reads));
    let (before, after) = match which {
        "old" => (from, to),
        _ => (to, from),
    };
    if !fits(wrote, reads) {
        return told(format!("was {before} and is {after}"));
    }
    // Of the fields of a oneof the last one written is all that is read.
    let together = |message: &DescriptorProto, other: i32, this: i32| {
        let of = |number| field(message, number).and_then(|it| it.oneof_index);
        of(this).is_some() && of(this) == of(other)
    };
    let numbers = written.field.iter().map(FieldDescriptorProto::number);
    let mut others = numbers.filter(|other| *other != number);
    let excluded =
        others.find(|other| together(read, *other, number) && !together(written, *other, number));
    if let Some(other) = excluded {
        return told(format!("and field {other} now exclude each other (oneof)"));
    }
    None
}

fn described(field: &FieldDescriptorProto) -> String {
    let repeated = match field.label() {
        Label::Repeated => "repeated ",
        _ => "",
    };
    let kind = match field.r#type() {
        Type::Message | Type::Enum | Type::Group => {
            field.type_name().trim_start_matches('.').to_owned()
        }
        // `TYPE_UINT32`
        other => other.as_str_name()["TYPE_".len()..].to_lowercase(),
    };
    format!("{repeated}{kind}")
}

/// Whether every value that one field writes is the same value for the other.
fn fits(wrote: &FieldDescriptorProto, reads: &FieldDescriptorProto) -> bool {
    let repeated = |it: &FieldDescriptorProto| it.label() == Label::Repeated;
    if repeated(wrote) != repeated(reads) {
        return false;
    }
    let (from, to) = (wrote.r#type(), reads.r#type());
    match (from, to) {
        (Type::Message | Type::Group | Type::Enum, _) if from == to => {
            wrote.type_name() == reads.type_name()
        }
        (Type::Bool, Type::Int32 | Type::Int64 | Type::Uint32 | Type::Uint64)
        | (Type::Int32 | Type::Enum, Type::Int64)
        | (Type::Enum, Type::Int32)
        | (Type::Uint32, Type::Uint64 | Type::Int64)
        | (Type::Sint32, Type::Sint64)
        | (Type::String, Type::Bytes) => true,
        _ => from == to,
    }
}

/// Numbers of one message or enum.
struct Numbers<'a> {
    used: Vec<(i32, &'a str)>,
    reserved: Vec<RangeInclusive<i32>>,
}

impl<'a> Numbers<'a> {
    fn of_message(message: &'a DescriptorProto) -> Self {
        let used = message.field.iter().map(|it| (it.number(), it.name()));
        // The end is not in the range.
        let reserved = message.reserved_range.iter();
        Self {
            used: used.collect(),
            reserved: reserved.map(|it| it.start()..=it.end() - 1).collect(),
        }
    }

    fn of_enum(it: &'a EnumDescriptorProto) -> Self {
        let used = it.value.iter().map(|it| (it.number(), it.name()));
        // Of enums, the end is in the range.
        let reserved = it.reserved_range.iter();
        Self {
            used: used.collect(),
            reserved: reserved.map(|it| it.start()..=it.end()).collect(),
        }
    }

    fn uses(&self, number: i32) -> bool {
        self.used.iter().any(|(used, _)| *used == number)
    }

    fn reserves(&self, number: i32) -> bool {
        self.reserved.iter().any(|range| range.contains(&number))
    }
}

/// Numbers that are gone and free for anything, and reserved ones that are used.
fn given_up(old: &Types<'_>, new: &Types<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, of: String, before: Numbers<'_>, after: Numbers<'_>| {
        for (number, name) in &before.used {
            if !after.uses(*number) && !after.reserves(*number) {
                found.push(format!(
                    "{what} {number} ({name}) of {of} is gone and its number free: add `reserved {number};`"
                ));
            }
        }
        for (number, name) in &after.used {
            if before.reserves(*number) {
                found.push(format!(
                    "{what} {number} ({name}) of {of} has a reserved number: take a new one"
                ));
            }
        }
    };
    for (name, before) in &old.messages {
        if let Some(after) = new.messages.get(name) {
            let (before, after) = (Numbers::of_message(before), Numbers::of_message(after));
            compare("field", name.clone(), before, after);
        }
    }
    for (name, before) in &old.enums {
        if let Some(after) = new.enums.get(name) {
            let (before, after) = (Numbers::of_enum(before), Numbers::of_enum(after));
            compare("value", format!("enum {name}"), before, after);
        }
    }
    found
}
