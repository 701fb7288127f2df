//! A JSON document as a program handles one: parse, clone, change, print, drop.

use std::hint::black_box;

use serde_json::{Map, Value, json};

use crate::prng::Prng;
use crate::run::Run;

pub(super) fn run(run: &mut Run) {
    let passes: u64 = run.pick(2, 1, 1);
    let document = document(run.pick(8000, 2000, 10));
    let values = count(&document);
    let text = document.to_string();
    drop(document);
    run.time(passes * values, || {
        for _ in 0..passes {
            let parsed: Value = serde_json::from_str(&text).expect("printed by the same library");
            let mut changed = parsed.clone();
            change(&mut changed);
            drop(parsed);
            black_box(changed.to_string());
        }
    });
}

/// Returns an array of records such as a service would store, of about 300 bytes of text each.
fn document(records: usize) -> Value {
    let mut prng = Prng::new(23);
    (0..records).map(|index| record(index, &mut prng)).collect()
}

fn record(index: usize, prng: &mut Prng) -> Value {
    let tags: Vec<String> = (0..prng.below(6)).map(|_| word(prng)).collect();
    let history: Vec<Value> = (0..prng.below(5))
        .map(|_| json!({ "at": prng.below(1 << 30), "by": word(prng), "delta": prng.below(100) }))
        .collect();
    json!({
        "id": index,
        "name": format!("{} {}", word(prng), word(prng)),
        "balance": prng.below(1_000_000) as f64 / 100.0,
        "active": prng.below(2) == 1,
        "address": { "street": word(prng), "city": word(prng), "zip": prng.below(99_999) },
        "tags": tags,
        "history": history,
        "note": if prng.below(3) == 0 { Value::Null } else { Value::String(word(prng).repeat(5)) },
    })
}

/// Returns a word of three to fourteen letters.
fn word(prng: &mut Prng) -> String {
    (0..3 + prng.below(12)).map(|_| char::from(b'a' + prng.below(26) as u8)).collect()
}

/// Renames, adds and removes fields in every record.
fn change(document: &mut Value) {
    let records = document.as_array_mut().expect("the document is an array");
    for record in records {
        let fields: &mut Map<String, Value> = record.as_object_mut().expect("records are objects");
        fields.remove("note");
        fields.insert("seen".to_owned(), json!([1, "two", { "three": 3 }]));
        if let Some(Value::String(name)) = fields.get_mut("name") {
            *name = name.to_uppercase();
        }
    }
}

/// Returns the number of values in a document, itself included.
fn count(value: &Value) -> u64 {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}
