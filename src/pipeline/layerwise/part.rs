//! What has become of one layer, and the file of a checkpoint that holds it.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, SafeTensors, TensorInfo};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::report::Linear;
use crate::error::{Error, Kind, Result};
use crate::format::packed::Packed;
use crate::pipeline::tune::report::Curve;
use crate::source::folded::Moved;

/// The key of the file's metadata that holds what has no shape.
const FACTS: &str = "layer";

/// The results of one layer.
#[derive(Debug)]
pub struct Part<H> {
    /// What is reported of its matrices.
    pub linears: Vec<Linear<H>>,
    /// Their tensors.
    pub tensors: Vec<Packed>,
    /// What was moved between its tensors.
    pub moved: Moved,
    /// How the layer was tuned, if it was.
    pub curve: Option<Curve>,
}

impl<H> Default for Part<H> {
    fn default() -> Part<H> {
        Part { linears: Vec::new(), tensors: Vec::new(), moved: Moved::default(), curve: None }
    }
}

/// What the file says besides tensors.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound(deserialize = "L: Deserialize<'de>"))]
struct Facts<L> {
    linears: L,
    /// The squared error of each.
    errors: Vec<f64>,
    /// Of tensors whose rows are divided, the first.
    first_rows: BTreeMap<String, usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    curve: Option<Curve>,
}

/// What factors were moved for, before the name of the tensor.
#[derive(Clone, Copy)]
enum Use {
    Replaced,
    Columns,
    Rows,
}

impl Use {
    fn prefix(self) -> &'static str {
        match self {
            Use::Replaced => "replaced:",
            Use::Columns => "columns:",
            Use::Rows => "rows:",
        }
    }
}

/// A part as a safetensors file: its header, and what follows.
pub struct Encoded<'a> {
    head: Vec<u8>,
    tensors: &'a [Packed],
    factors: Vec<&'a [f32]>,
}

impl<H: Serialize + DeserializeOwned> Part<H> {
    /// Its file: the tensors under their names, then the factors that were moved.
    pub fn encode(&self) -> Encoded<'_> {
        let factors: Vec<(String, &[f32])> = self.factors().collect();
        let mut end = 0;
        let mut info = |dtype, shape, bytes: usize| {
            let start = end;
            end += bytes;
            TensorInfo { dtype, shape, data_offsets: (start, end) }
        };
        let mut infos = Vec::new();
        for tensor in &self.tensors {
            infos.push((tensor.name.clone(), info(tensor.dtype, tensor.shape.clone(), tensor.bytes.len())));
        }
        for (name, values) in &factors {
            infos.push((name.clone(), info(Dtype::F32, vec![values.len()], size_of_val(*values))));
        }
        let first_rows = self.moved.rows.iter().map(|(name, (first, _))| (name.clone(), *first)).collect();
        let errors = self.linears.iter().map(|linear| linear.error).collect();
        let facts = Facts { linears: &self.linears, errors, first_rows, curve: self.curve.clone() };
        let facts = serde_json::to_string(&facts).expect("a report is plain data");
        let header = Metadata::new(Some(HashMap::from([(FACTS.to_owned(), facts)])), infos)
            .expect("tensors follow each other");
        let header = serde_json::to_vec(&header).expect("a header is JSON");
        let head = [&(header.len() as u64).to_le_bytes(), header.as_slice()].concat();
        Encoded { head, tensors: &self.tensors, factors: factors.into_iter().map(|(_, f)| f).collect() }
    }

    fn factors(&self) -> impl Iterator<Item = (String, &[f32])> {
        let named = |usage: Use| move |name: &str| format!("{}{name}", usage.prefix());
        let Moved { replaced, columns, rows } = &self.moved;
        let replaced = replaced.iter().map(move |(name, v)| (named(Use::Replaced)(name), v.as_slice()));
        let columns = columns.iter().map(move |(name, v)| (named(Use::Columns)(name), v.as_slice()));
        let rows = rows.iter().map(move |(name, (_, v))| (named(Use::Rows)(name), v.as_slice()));
        replaced.chain(columns).chain(rows)
    }

    /// Reads such a file, which must hold these tensors and no others.
    ///
    /// # Errors
    /// `Checkpoint` if it does not.
    pub fn decode(bytes: &[u8], expected: Vec<Packed>) -> Result<Part<H>> {
        let unusable = |why: &str| Error::new(Kind::Checkpoint, format!("a layer of the checkpoint {why}"));
        let file = SafeTensors::deserialize(bytes).map_err(|e| unusable("cannot be read").because(e))?;
        let (_, metadata) =
            SafeTensors::read_metadata(bytes).map_err(|e| unusable("cannot be read").because(e))?;
        let facts = metadata.metadata().as_ref().and_then(|all| all.get(FACTS));
        let mut facts: Facts<Vec<Linear<H>>> = serde_json::from_str(facts.map_or("", String::as_str))
            .map_err(|e| unusable("says nothing of its matrices").because(e))?;
        if facts.errors.len() != facts.linears.len() {
            return Err(unusable("does not have an error for each matrix"));
        }
        facts.linears.iter_mut().zip(&facts.errors).for_each(|(linear, error)| linear.error = *error);
        let mut found: BTreeMap<String, _> = file.tensors().into_iter().collect();
        let mut tensors = Vec::with_capacity(expected.len());
        for spec in expected {
            let view = found
                .remove(&spec.name)
                .filter(|view| view.dtype() == spec.dtype && view.shape() == spec.shape);
            let view = view.ok_or_else(|| unusable(&format!("does not hold {} as it is now", spec.name)))?;
            tensors.push(Packed { bytes: view.data().to_vec(), ..spec });
        }
        let mut moved = Moved::default();
        for (name, view) in found {
            let floats = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let values: Vec<f32> = floats.collect();
            let of = |usage: Use| {
                (view.dtype() == Dtype::F32).then(|| name.strip_prefix(usage.prefix())).flatten()
            };
            if let Some(name) = of(Use::Replaced) {
                moved.replaced.insert(name.into(), values);
            } else if let Some(name) = of(Use::Columns) {
                moved.columns.insert(name.into(), values);
            } else if let Some((name, first)) =
                of(Use::Rows).and_then(|name| Some((name, *facts.first_rows.get(name)?)))
            {
                moved.rows.insert(name.into(), (first, values));
            } else {
                return Err(unusable(&format!("holds {name}, which is not its own")));
            }
        }
        Ok(Part { linears: facts.linears, tensors, moved, curve: facts.curve })
    }
}

impl Encoded<'_> {
    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        let tensors: usize = self.tensors.iter().map(|tensor| tensor.bytes.len()).sum();
        let factors: usize = self.factors.iter().map(|factors| size_of_val(*factors)).sum();
        (self.head.len() + tensors + factors) as u64
    }

    /// Writes the file.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.head)?;
        self.tensors.iter().try_for_each(|tensor| out.write_all(&tensor.bytes))?;
        for factors in &self.factors {
            let bytes: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
            out.write_all(&bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::gptq::report::How;
    use crate::pipeline::tune::report::Point;

    fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> Packed {
        Packed { name: name.into(), dtype, shape: shape.to_vec(), bytes: Vec::new() }
    }

    fn specs() -> Vec<Packed> {
        vec![spec("b.qweight", Dtype::I32, &[1, 2]), spec("a.scales", Dtype::F16, &[3])]
    }

    fn linear() -> Linear<How> {
        let text = r#"{"name": "b", "shape": [1, 2], "method": "gptq", "damp": 0.05, "relative_error": 0.1, "share": 0.0,
            "tokens": 7, "dead_inputs": 0, "outliers": 1, "seconds": 0.5, "weight_nmse": 3e-17}"#;
        let linear: Linear<How> = serde_json::from_str(text).unwrap();
        Linear { error: 0.1 + 0.2, ..linear }
    }

    fn curve() -> Curve {
        let points = vec![
            Point { step: 0, train: None, held_out: 0.1 },
            Point { step: 5, train: Some(0.3), held_out: 0.2 },
        ];
        Curve { name: "layer 1".into(), points, kept: 0, rolled_back: 1, seconds: 2.5 }
    }

    fn part() -> Part<How> {
        let mut tensors = specs();
        tensors[0].bytes = (0..8).collect();
        tensors[1].bytes = (0..6).collect();
        let mut moved = Moved::default();
        moved.replaced.insert("norm".into(), vec![0.1, -2.5]);
        moved.columns.insert("b".into(), vec![f32::MIN_POSITIVE]);
        moved.rows.insert("b".into(), (3, vec![1.0, 3.0]));
        Part { linears: vec![linear()], tensors, moved, curve: Some(curve()) }
    }

    fn bytes(part: &Part<How>) -> Vec<u8> {
        let encoded = part.encode();
        let mut bytes = Vec::new();
        encoded.write(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, encoded.bytes());
        bytes
    }

    #[test]
    fn a_part_is_read_as_it_was_written() {
        let part = part();
        let read = Part::<How>::decode(&bytes(&part), specs()).unwrap();
        assert_eq!((&read.tensors, &read.moved), (&part.tensors, &part.moved));
        let text = |part: &Part<How>| format!("{:?} {:?}", part.linears, part.curve);
        assert_eq!(text(&read), text(&part));
        let empty = Part::<How>::default();
        assert!(Part::<How>::decode(&bytes(&empty), vec![]).unwrap().tensors.is_empty());
    }

    #[test]
    fn other_tensors_are_refused() {
        let bytes = bytes(&part());
        let refused = |expected: Vec<Packed>, word: &str| {
            let e = Part::<How>::decode(&bytes, expected).unwrap_err();
            assert_eq!(e.kind(), Kind::Checkpoint);
            assert!(e.to_string().contains(word), "{e}");
        };
        refused(specs()[..1].to_vec(), "a.scales");
        refused([specs(), vec![spec("c", Dtype::I32, &[1])]].concat(), "does not hold c");
        refused(vec![spec("b.qweight", Dtype::I32, &[2, 1])], "b.qweight");
        for length in [0, 7, 8, 100, bytes.len() - 1] {
            let e = Part::<How>::decode(&bytes[..length], specs()).unwrap_err();
            assert_eq!(e.kind(), Kind::Checkpoint, "{length}");
        }
    }
}
