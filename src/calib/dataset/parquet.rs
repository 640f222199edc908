//! Parquet files: one column of text or of conversations.

mod pages;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use super::record::{COLUMNS, Place, of_column};
use super::unpacked::{Allowance, TOO_MUCH};
use super::{Sink, open_file};
use crate::error::{Error, Result};
use crate::foreign::caught;

/// The samples of a `.parquet` file.
pub(super) fn records(
    path: &Path,
    name: &str,
    column: Option<&str>,
    sink: &mut Sink<'_>,
) -> Result<ControlFlow<()>> {
    let place = Place { file: name, at: None };
    let file = open_file(path, name)?;
    let unreadable = |e| Error::io(format!("cannot read {name}"), e);
    let mut left = Allowance::of(file.metadata().map_err(unreadable)?.len());
    let same = file.try_clone().map_err(unreadable)?;
    let reader = guarded(&place, || SerializedFileReader::new(file))?;
    let schema = reader.metadata().file_metadata().schema();
    let names = || schema.get_fields().iter().map(|field| field.name());
    let chosen = match column {
        Some(column) => names().find(|name| *name == column),
        None => COLUMNS.into_iter().find(|known| names().any(|name| name == *known)),
    };
    let chosen = chosen.ok_or_else(|| place.no_column(column, names()))?.to_owned();
    let field = schema.get_fields().iter().find(|field| field.name() == chosen);
    let fields: Vec<Arc<Type>> = field.cloned().into_iter().collect();
    let mut rows = guarded(&place, || {
        let only = Type::group_type_builder(schema.name()).with_fields(fields).build()?;
        reader.get_row_iter(Some(only))
    })?;
    let mut groups = reader.metadata().row_groups().iter();
    let mut checked = 0;
    for i in 1.. {
        // A group's pages, before the library comes to them.
        while checked < i
            && let Some(group) = groups.next()
        {
            for chunk in group.columns().iter().filter(|c| c.column_path().parts().first() == Some(&chosen)) {
                pages::check(&same, chunk).map_err(|what| broken(&place).because(what))?;
            }
            checked += usize::try_from(group.num_rows()).unwrap_or(0);
        }
        let Some(row) = guarded(&place, || rows.next().transpose())? else { break };
        let place = Place { file: name, at: Some(("row", i)) };
        for (_, field) in row.get_column_iter() {
            let value = value(field, &place)?;
            if !left.take(size(&value)) {
                return Err(broken(&place).because(TOO_MUCH));
            }
            let flow = sink(of_column(&chosen, value, &place)?)?;
            if flow.is_break() {
                return Ok(flow);
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Runs a part of the library, which panics at some damaged files. That is an error of the file like any other.
fn guarded<T>(place: &Place<'_>, part: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    match caught(part) {
        Some(done) => done.map_err(|e| broken(place).because(e)),
        None => Err(broken(place)),
    }
}

fn broken(place: &Place<'_>) -> Error {
    place.invalid("no intact Parquet file").hint("Fetch or write the file again.")
}

/// About how many bytes a value takes: a page can say in a few bytes that a million rows have the same text.
fn size(value: &Value) -> u64 {
    const EACH: u64 = 16;
    EACH + match value {
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(entries) => entries.iter().map(|(key, value)| key.len() as u64 + size(value)).sum(),
        _ => 0,
    }
}

fn value(field: &Field, place: &Place<'_>) -> Result<Value> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(v) => Value::from(*v),
        Field::Byte(v) => Value::from(*v),
        Field::Short(v) => Value::from(*v),
        Field::Int(v) => Value::from(*v),
        Field::Long(v) => Value::from(*v),
        Field::UByte(v) => Value::from(*v),
        Field::UShort(v) => Value::from(*v),
        Field::UInt(v) => Value::from(*v),
        Field::ULong(v) => Value::from(*v),
        Field::Float(v) => Value::from(*v),
        Field::Double(v) => Value::from(*v),
        Field::Str(text) => Value::from(text.as_str()),
        // Some writers do not say that a column of bytes is text.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::from(text),
            Err(e) => {
                return Err(place.invalid(format!("the text is not UTF-8 at its byte {}", e.valid_up_to())));
            }
        },
        Field::Group(row) => {
            let mut object = Map::new();
            for (name, field) in row.get_column_iter() {
                object.insert(name.clone(), value(field, place)?);
            }
            Value::Object(object)
        }
        Field::ListInternal(list) => {
            list.elements().iter().map(|field| value(field, place)).collect::<Result<Vec<_>>>()?.into()
        }
        other => return Err(place.invalid(format!("a value of a kind that is no text: {other}"))),
    })
}
