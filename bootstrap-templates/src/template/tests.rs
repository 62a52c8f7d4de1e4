//! The recorded table was printed by Go 1.26 with Sprig 3.3; a case without output is an error
//! there and must be one here.

use super::functions::Context;
use super::{NoValue, Template, TemplateError, Value};

#[derive(serde::Deserialize)]
struct Case {
    template: String,
    output: Option<String>,
}

fn texts(items: &[(&str, &str)]) -> Value {
    let owned: Vec<(String, String)> = items
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    Value::texts(owned.iter().map(|(key, value)| (key, value)))
}

fn object<const N: usize>(items: [(&str, Value); N]) -> Value {
    items
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

fn data() -> Value {
    let list = |items: &[&str]| items.iter().map(ToString::to_string).collect::<Value>();
    object([
        ("name", "proxy".into()),
        ("port", 15090.into()),
        ("ratio", Value::Float(1.5)),
        ("on", true.into()),
        ("off", false.into()),
        ("empty", "".into()),
        ("list", list(&["a", "b", "c"])),
        ("none", list(&[])),
        ("numbers", vec![3.into(), 1.into(), 2.into()].into()),
        ("labels", texts(&[("app", "web"), ("tier", "front")])),
        (
            "map",
            object([("b", 2.into()), ("a", object([("deep", "x".into())]))]),
        ),
        ("text", "a\"b\\c<d>&'e=\n\t\u{e9}".into()),
        ("address", "{\"address\": \"10.0.0.1\"}".into()),
    ])
}

fn render(template: &str) -> Result<(String, Vec<NoValue>), TemplateError> {
    let environment = |name: &str| (name == "TEMPLATE_TEST").then(|| "set".to_owned());
    Template::parse(template)?.render(&data(), &environment)
}

#[test]
fn renders_what_go_renders() {
    let recorded = include_str!("../../tests/fixtures/go-templates.json");
    let cases: Vec<Case> = serde_json::from_str(recorded).expect("fixture");
    assert!(cases.len() >= 150, "{}", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let rendered = render(&case.template).map(|(text, _)| text);
        if rendered.as_ref().ok() != case.output.as_ref() {
            wrong.push(format!(
                "{:?}: {rendered:?} instead of {:?}",
                case.template, case.output
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn refusals_name_the_line_and_the_reason() {
    for (template, want) in [
        ("a\nb {{ nope }}", "line 2: function \"nope\" not defined"),
        (
            "\n\n{{ now }}",
            "line 3: function \"now\" is not supported in bootstrap templates",
        ),
        ("{{ if .on }}\n\n", "line 1: unclosed {{if}}"),
        (
            "\n{{ .port | index .list }}",
            "line 2: index: index out of range: 15090",
        ),
        (
            "{{ printf \"%d\" \"x\" }}",
            "line 1: printf: %d of string is not supported",
        ),
        (
            "\n{{ template \"t\" }}",
            "line 2: template \"t\" not defined",
        ),
        (
            "{{ 99999999999999999999 }}",
            "line 1: bad number \"99999999999999999999\"",
        ),
        ("{{ 1i }}", "line 1: bad number \"1i\""),
        ("{{ (((\n", "line 2: unclosed action"),
        ("{{ .name }", "line 1: unexpected '}' in an action"),
        (
            "{{ fromJson .name }}",
            "line 1: fromJson: expected value at line 1 column 1",
        ),
        (
            "{{ until 1000000 }}",
            "line 1: until: more than 10000 items",
        ),
        ("{{ len }}", "line 1: len: wrong number of arguments: 0"),
    ] {
        let error = render(template).expect_err(template);
        assert!(error.to_string().starts_with(want), "{template:?}: {error}");
    }
}

#[test]
fn missing_values_are_printed_as_in_go_and_reported() {
    let (text, no_values) = render("a\n{{ .nothing }}\n{{ .name }}").expect("renders");
    assert_eq!(text, "a\n<no value>\nproxy");
    assert_eq!(no_values, [NoValue { line: 2 }]);
}

#[test]
fn runaway_templates_end_with_an_error() {
    let deep = "{{ if .on }}".repeat(60) + &"{{ end }}".repeat(60);
    let parentheses = format!("{{{{ {}1{} }}}}", "(".repeat(60), ")".repeat(60));
    for template in [
        deep.as_str(),
        parentheses.as_str(),
        "{{ define \"a\" }}{{ template \"a\" }}{{ end }}{{ template \"a\" }}",
        "{{ $d := dict }}{{ $_ := set $d \"a\" $d }}{{ $d }}",
        "{{ $l := list }}{{ range until 100 }}{{ $l = list $l $l }}{{ end }}{{ $l }}",
        "{{ range until 9999 }}{{ range until 9999 }}{{ $.name }}{{ end }}{{ end }}",
        "{{ range 9999999999 }}x{{ end }}",
        "{{ $s := repeat 1000000 \"x\" }}{{ range until 100 }}{{ $s }}{{ end }}",
        "{{ repeat 9999999 \"xx\" }}",
        "{{ printf \"%99999d\" 1 }}",
    ] {
        render(template).expect_err(template);
    }
}

#[test]
fn hostile_bytes_do_not_panic() {
    let pieces = [
        "{{", "}}", "-", " ", "\n", "\"", "`", "'", "\\", ".", "$", "x", "(", ")", "|", ":=", ",",
        "if", "end", "range", "9", "\u{e9}", "/*", "*/",
    ];
    let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
    for _ in 0..20_000 {
        let mut text = String::from("{{");
        for _ in 0..12 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let at = usize::try_from(seed >> 33).unwrap_or(0) % pieces.len();
            text.push_str(pieces[at]);
        }
        // Only that it returns matters.
        let _ = render(&text);
    }
}

#[test]
fn every_function_that_is_named_exists_once() {
    let context = Context {
        environment: &|_| None,
    };
    for name in ["toJson", "default", "index", "env"] {
        assert!(super::functions::find(name).is_some(), "{name}");
        assert!(!super::functions::exists_elsewhere(name), "{name}");
        // Called without arguments: an error, not a panic.
        super::functions::call(name, &context, &[]).expect_err(name);
    }
}
