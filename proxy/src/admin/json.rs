//! JSON as the admin pages print it: one space of indent, one line feed at the end, `<` and `>` escaped.

use serde_json::Value;

/// The page of a value.
#[must_use]
pub fn pretty(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write(value, 0, &mut out);
    out.push(b'\n');
    out
}

fn indent(depth: usize, out: &mut Vec<u8>) {
    out.push(b'\n');
    out.resize(out.len() + depth, b' ');
}

fn write(value: &Value, depth: usize, out: &mut Vec<u8>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push(b'{');
            for (i, (key, value)) in map.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                indent(depth + 1, out);
                string(key, out);
                out.extend_from_slice(b": ");
                write(value, depth + 1, out);
            }
            indent(depth, out);
            out.push(b'}');
        }
        Value::Array(items) if !items.is_empty() => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                indent(depth + 1, out);
                write(item, depth + 1, out);
            }
            indent(depth, out);
            out.push(b']');
        }
        Value::String(text) => string(text, out),
        other => out.extend_from_slice(other.to_string().as_bytes()),
    }
}

fn string(text: &str, out: &mut Vec<u8>) {
    let quoted = Value::from(text).to_string();
    for b in quoted.bytes() {
        match b {
            b'<' => out.extend_from_slice(b"\\u003c"),
            b'>' => out.extend_from_slice(b"\\u003e"),
            _ => out.push(b),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_indented_by_one_space_and_angle_brackets_escaped() {
        let value = serde_json::json!({"a": [{"b": "<inline>"}], "c": [], "d": {}, "e": 1});
        let text = String::from_utf8(pretty(&value)).expect("ASCII");
        assert_eq!(
            text,
            "{\n \"a\": [\n  {\n   \"b\": \"\\u003cinline\\u003e\"\n  }\n ],\n \"c\": [],\n \"d\": {},\n \"e\": 1\n}\n"
        );
    }
}
