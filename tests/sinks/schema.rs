//! JSON Schema, as much of it as the schemas here use. What it does not know, it refuses; `programs` checks the same payloads
//! with a complete implementation.

use chrono::DateTime;
use serde_json::Value;

/// Panics where `value` does not fit the schema `tests/schemas/NAME.json`.
#[track_caller]
pub(crate) fn assert_fits(name: &str, value: &Value) {
    let schema = load(name);
    if let Err(problem) = check(&schema, &schema, value, "") {
        panic!("{name}: {problem}\n{value:#}");
    }
}

fn load(name: &str) -> Value {
    let path = format!("{}/tests/schemas/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn check(root: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let fail = |what: String| Err(format!("{at}: {what}"));
    for (keyword, rule) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "$schema" | "$comment" | "$defs" | "title" => {}
            "$ref" => {
                let target = root.pointer(rule.as_str().unwrap().strip_prefix('#').unwrap()).unwrap();
                check(root, target, value, at)?;
            }
            "type" => {
                let fits = |name: &Value| match name.as_str().unwrap() {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "number" => value.is_number(),
                    "integer" => value.is_i64() || value.is_u64(),
                    "boolean" => value.is_boolean(),
                    "null" => value.is_null(),
                    other => panic!("type {other}"),
                };
                if !rule.as_array().map_or_else(|| fits(rule), |types| types.iter().any(fits)) {
                    return fail(format!("is not {rule}"));
                }
            }
            "const" if value != rule => return fail(format!("is not {rule}")),
            "enum" if !rule.as_array().unwrap().contains(value) => return fail(format!("is none of {rule}")),
            "const" | "enum" => {}
            "oneOf" => {
                let schemas = rule.as_array().unwrap();
                let problems: Vec<_> =
                    schemas.iter().filter_map(|schema| check(root, schema, value, at).err()).collect();
                if schemas.len() - problems.len() != 1 {
                    return fail(format!("fits {} of oneOf: {problems:?}", schemas.len() - problems.len()));
                }
            }
            "required" => {
                for name in rule.as_array().unwrap() {
                    if value.get(name.as_str().unwrap()).is_none() {
                        return fail(format!("lacks {name}"));
                    }
                }
            }
            "properties" => {
                for (name, schema) in rule.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        check(root, schema, value, &format!("{at}/{name}"))?;
                    }
                }
            }
            "additionalProperties" => {
                let known = schema.get("properties").and_then(Value::as_object);
                for (name, value) in value.as_object().into_iter().flatten() {
                    if known.is_some_and(|known| known.contains_key(name)) {
                        continue;
                    }
                    match rule {
                        Value::Bool(false) => return fail(format!("has {name}")),
                        rule => check(root, rule, value, &format!("{at}/{name}"))?,
                    }
                }
            }
            "items" => {
                for (index, value) in value.as_array().into_iter().flatten().enumerate() {
                    check(root, rule, value, &format!("{at}/{index}"))?;
                }
            }
            "minItems" | "maxItems" | "minLength" | "maxLength" => {
                let length = match value {
                    Value::Array(items) if keyword.ends_with("Items") => items.len(),
                    Value::String(text) if keyword.ends_with("Length") => text.chars().count(),
                    _ => continue,
                };
                let limit = usize::try_from(rule.as_u64().unwrap()).unwrap();
                if if keyword.starts_with("min") { length < limit } else { length > limit } {
                    return fail(format!("{keyword} {limit}, has {length}"));
                }
            }
            "format" => {
                assert_eq!(rule, "date-time");
                if let Some(text) = value.as_str()
                    && DateTime::parse_from_rfc3339(text).is_err()
                {
                    return fail(format!("{text} is no date-time"));
                }
            }
            other => panic!("the keyword {other} is not known here"),
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_found() {
    let fits = serde_json::json!({"text": "a", "blocks": [
        {"type": "header", "text": {"type": "plain_text", "text": "a"}},
    ]});
    assert_fits("slack", &fits);
    let spoil: [(&str, Value); 6] = [
        ("/text", Value::Null),
        ("/blocks", serde_json::json!([])),
        ("/blocks/0/type", "title".into()),
        ("/blocks/0/text/text", "".into()),
        ("/blocks/0/text/text", "x".repeat(151).into()),
        ("/blocks/0/text", serde_json::json!({"type": "plain_text", "text": "a", "more": 1})),
    ];
    let schema = load("slack");
    for (place, value) in spoil {
        let mut spoilt = fits.clone();
        *spoilt.pointer_mut(place).unwrap() = value;
        assert!(check(&schema, &schema, &spoilt, "").is_err(), "{spoilt}");
    }
}
