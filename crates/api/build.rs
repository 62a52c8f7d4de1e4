//! Builds the descriptor table: reads the `.proto` files of the `envoy-types` package and our own, resolves type
//! names and writes one compact table (offsets only, so that it stays clean read-only data in the binary).

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Field flags, shared with `src/table.rs`. The bits above are the number of the oneof, counted from 1.
const REPEATED: u8 = 1;
const PRESENCE: u8 = 2;
const SENSITIVE: u8 = 4;
const ONEOF_SHIFT: u8 = 3;
const MAP_ENTRY: u32 = 1;

struct Field {
    number: u32,
    name: String,
    kind: u8,
    flags: u8,
    type_name: String,
}

struct Message {
    fields: Vec<Field>,
    map_entry: bool,
}

#[derive(Default)]
struct Symbols {
    messages: BTreeMap<String, Message>,
    enums: BTreeMap<String, Vec<(i32, String)>>,
}

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=proto");
    let mut files = Vec::new();
    collect(&envoy_protos()?, &mut files)?;
    collect(Path::new("proto"), &mut files)?;
    files.sort();
    let mut symbols = Symbols::default();
    for file in &files {
        let source = fs::read_to_string(file)?;
        let parsed = protox_parse::parse(&file.to_string_lossy(), &source)
            .map_err(|e| format!("{}: {e}", file.display()))?;
        add_file(&mut symbols, &parsed)?;
    }
    resolve(&mut symbols)?;
    let out = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(out, encode(&symbols)?)?;
    Ok(())
}

/// The `proto` folder of the `envoy-types` package, as cargo resolved it.
fn envoy_protos() -> Result<PathBuf> {
    let output = Command::new(env::var("CARGO")?)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
        ])
        // Not offline: a build of the programs alone has not downloaded what only tests need, and the command
        // wants every package of this platform.
        .arg(env::var("TARGET")?)
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|p| p["name"] == "envoy-types")
        .and_then(|p| p["manifest_path"].as_str())
        .ok_or("envoy-types is not among the dependencies")?;
    Ok(Path::new(manifest)
        .parent()
        .ok_or("manifest without folder")?
        .join("proto"))
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            files.push(path);
        }
    }
    Ok(())
}

fn add_file(symbols: &mut Symbols, file: &FileDescriptorProto) -> Result<()> {
    let scope = file.package();
    for message in &file.message_type {
        add_message(symbols, scope, message)?;
    }
    for e in &file.enum_type {
        add_enum(symbols, scope, e);
    }
    Ok(())
}

fn join(scope: &str, name: &str) -> String {
    if scope.is_empty() {
        name.to_owned()
    } else {
        format!("{scope}.{name}")
    }
}

fn add_enum(symbols: &mut Symbols, scope: &str, e: &EnumDescriptorProto) {
    let values = e
        .value
        .iter()
        .map(|v| (v.number(), v.name().to_owned()))
        .collect();
    symbols.enums.insert(join(scope, e.name()), values);
}

fn add_message(symbols: &mut Symbols, scope: &str, message: &DescriptorProto) -> Result<()> {
    let name = join(scope, message.name());
    for nested in &message.nested_type {
        add_message(symbols, &name, nested)?;
    }
    for e in &message.enum_type {
        add_enum(symbols, &name, e);
    }
    let mut fields = message
        .field
        .iter()
        .map(field)
        .collect::<Result<Vec<_>>>()?;
    fields.sort_by_key(|f| f.number);
    let map_entry = message.options.as_ref().is_some_and(|o| o.map_entry());
    symbols.messages.insert(name, Message { fields, map_entry });
    Ok(())
}

fn field(f: &FieldDescriptorProto) -> Result<Field> {
    let mut flags = 0;
    if f.label() == Label::Repeated {
        flags |= REPEATED;
    }
    if f.oneof_index.is_some() || f.proto3_optional() {
        flags |= PRESENCE;
    }
    if !f.proto3_optional()
        && let Some(index) = f.oneof_index
    {
        let number = u8::try_from(index + 1)?;
        if number > u8::MAX >> ONEOF_SHIFT {
            return Err(format!("{}: too many oneofs for the table", f.name()).into());
        }
        flags |= number << ONEOF_SHIFT;
    }
    let sensitive = f
        .options
        .iter()
        .flat_map(|o| &o.uninterpreted_option)
        .any(|o| {
            o.name
                .iter()
                .any(|part| part.name_part.ends_with("udpa.annotations.sensitive"))
        });
    if sensitive {
        flags |= SENSITIVE;
    }
    // The parser leaves the type of named types open: message or enum is decided when names are resolved.
    let kind = f.r#type.unwrap_or(0) as u8;
    Ok(Field {
        number: f.number() as u32,
        name: f.name().to_owned(),
        kind,
        flags,
        type_name: f.type_name().to_owned(),
    })
}

/// Replaces relative type names by full ones: the innermost scope in which the whole name exists.
fn resolve(symbols: &mut Symbols) -> Result<()> {
    let mut resolved: Vec<(String, usize, String, u8)> = Vec::new();
    for (message, m) in &symbols.messages {
        for (i, f) in m.fields.iter().enumerate() {
            if f.type_name.is_empty() {
                continue;
            }
            let full = find(symbols, message, &f.type_name)
                .ok_or_else(|| format!("{message}.{}: unknown type {}", f.name, f.type_name))?;
            let kind = if symbols.enums.contains_key(&full) {
                Type::Enum
            } else {
                Type::Message
            };
            resolved.push((message.clone(), i, full, kind as u8));
        }
    }
    for (message, i, full, kind) in resolved {
        if let Some(m) = symbols.messages.get_mut(&message) {
            m.fields[i].type_name = full;
            m.fields[i].kind = kind;
        }
    }
    Ok(())
}

fn find(symbols: &Symbols, scope: &str, name: &str) -> Option<String> {
    // Well-known types have JSON forms of their own, written in code: they need no descriptor.
    let known = |full: &str| {
        symbols.messages.contains_key(full)
            || symbols.enums.contains_key(full)
            || full.starts_with("google.protobuf.")
    };
    if let Some(absolute) = name.strip_prefix('.') {
        return known(absolute).then(|| absolute.to_owned());
    }
    let mut scope = scope;
    loop {
        let candidate = join(scope, name);
        if known(&candidate) {
            return Some(candidate);
        }
        if scope.is_empty() {
            return None;
        }
        scope = scope.rfind('.').map_or("", |at| &scope[..at]);
    }
}

#[derive(Default)]
struct Strings {
    bytes: Vec<u8>,
    known: BTreeMap<String, u32>,
}

impl Strings {
    fn add(&mut self, text: &str) -> u32 {
        if let Some(at) = self.known.get(text) {
            return *at;
        }
        let at = self.bytes.len() as u32;
        self.bytes.extend_from_slice(text.as_bytes());
        self.known.insert(text.to_owned(), at);
        at
    }
}

/// Layout: five counts, then messages (16 bytes), fields (16), enums (12), enum values (12), strings.
fn encode(symbols: &Symbols) -> Result<Vec<u8>> {
    let mut strings = Strings::default();
    let index =
        |map: &dyn Fn(&str) -> Option<usize>, name: &str| map(name).unwrap_or(usize::MAX) as u32;
    let message_names: Vec<&String> = symbols.messages.keys().collect();
    let enum_names: Vec<&String> = symbols.enums.keys().collect();
    let message_index = |name: &str| {
        message_names
            .binary_search_by(|n| n.as_str().cmp(name))
            .ok()
    };
    let enum_index = |name: &str| enum_names.binary_search_by(|n| n.as_str().cmp(name)).ok();
    let (mut messages, mut fields, mut enums, mut values) = (vec![], vec![], vec![], vec![]);
    let mut field_count = 0_u32;
    for (name, m) in &symbols.messages {
        messages.extend(strings.add(name).to_le_bytes());
        messages.extend((name.len() as u16).to_le_bytes());
        messages.extend((m.fields.len() as u16).to_le_bytes());
        messages.extend(field_count.to_le_bytes());
        messages.extend((if m.map_entry { MAP_ENTRY } else { 0 }).to_le_bytes());
        for f in &m.fields {
            field_count += 1;
            fields.extend(f.number.to_le_bytes());
            fields.extend(strings.add(&f.name).to_le_bytes());
            fields.push(u8::try_from(f.name.len())?);
            fields.push(f.kind);
            fields.push(f.flags);
            fields.push(well_known(&f.type_name));
            let index = if f.kind == Type::Enum as u8 {
                index(&enum_index, &f.type_name)
            } else {
                index(&message_index, &f.type_name)
            };
            fields.extend(index.to_le_bytes());
        }
    }
    let mut value_count = 0_u32;
    for (name, list) in &symbols.enums {
        enums.extend(strings.add(name).to_le_bytes());
        enums.extend((name.len() as u16).to_le_bytes());
        enums.extend((list.len() as u16).to_le_bytes());
        enums.extend(value_count.to_le_bytes());
        for (number, name) in list {
            value_count += 1;
            values.extend(number.to_le_bytes());
            values.extend(strings.add(name).to_le_bytes());
            values.extend((name.len() as u32).to_le_bytes());
        }
    }
    let mut out = Vec::new();
    for count in [
        message_names.len() as u32,
        field_count,
        enum_names.len() as u32,
        value_count,
    ] {
        out.extend(count.to_le_bytes());
    }
    out.extend((strings.bytes.len() as u32).to_le_bytes());
    for part in [messages, fields, enums, values, strings.bytes] {
        out.extend(part);
    }
    Ok(out)
}

/// Number of a well-known type, shared with `src/table.rs`; 0 = none.
fn well_known(name: &str) -> u8 {
    const NAMES: [&str; 18] = [
        "Any",
        "Duration",
        "Timestamp",
        "Struct",
        "Value",
        "ListValue",
        "BoolValue",
        "Int32Value",
        "Int64Value",
        "UInt32Value",
        "UInt64Value",
        "FloatValue",
        "DoubleValue",
        "StringValue",
        "BytesValue",
        "FieldMask",
        "Empty",
        "NullValue",
    ];
    name.strip_prefix("google.protobuf.")
        .and_then(|n| NAMES.iter().position(|k| *k == n))
        .map_or(0, |i| i as u8 + 1)
}
