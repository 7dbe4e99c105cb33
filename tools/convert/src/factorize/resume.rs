//! Finished factorisations, kept so that an interrupted conversion can continue.

use super::{
    Factorized, Request,
    codes::{Codebooks, Shape},
};
use anyhow::Result;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{collections::HashMap, fs, io, path::Path, time::UNIX_EPOCH};
use ttrec::TtShape;

/// Keeps finished factorisations between two runs of [`convert`](crate::convert).
///
/// It keeps bytes by a key, which contains the file, the tensor and the request. The bytes repeat
/// their key, so that an implementation that loses or confuses entries only costs time.
pub trait ResumeCache {
    /// The bytes under `key`, if there are any.
    fn get(&self, key: &str) -> Option<Vec<u8>>;

    /// Stores `bytes` under `key`.
    ///
    /// # Errors
    /// If they cannot be stored: the conversion then ends with [`Error::Output`](crate::Error).
    fn put(&self, key: &str, bytes: &[u8]) -> io::Result<()>;

    /// Removes the bytes under `key`, if there are any.
    fn remove(&self, key: &str);
}

/// The inputs of a factorisation, as text.
pub(crate) struct Key {
    text: String,
    /// The shape of the requested codes.
    codes: Option<Shape>,
}

impl Key {
    /// The key of a request for a tensor of a file.
    pub(crate) fn new(
        file: &Path,
        tensor: &str,
        request: &Request,
        frequencies: Option<&Path>,
    ) -> Result<Self> {
        let identity = |path: &Path| -> Result<serde_json::Value> {
            let place = fs::canonicalize(path)?;
            let metadata = fs::metadata(&place)?;
            let modified = metadata
                .modified()?
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_nanos());
            Ok(serde_json::json!([
                place.display().to_string(),
                metadata.len(),
                modified.to_string()
            ]))
        };
        let frequencies = frequencies.map(identity).transpose()?;
        // Another version may give another result.
        let version = env!("CARGO_PKG_VERSION");
        let key = serde_json::json!({
            "version": version, "file": identity(file)?, "tensor": tensor,
            "request": request, "frequencies": frequencies,
        });
        let codes = match request {
            Request::Codes(shape) => Some(*shape),
            _ => None,
        };
        Ok(Self { text: key.to_string(), codes })
    }
}

/// The name of the array that has the row of each index.
const PLACES: &str = "places";
/// The names of the arrays of codes.
const BOOKS: &str = "books";
const PROJECTION: &str = "projection";

/// An array's name, shape and values.
type Array<'a> = (String, Vec<usize>, &'a [f32]);

impl Key {
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The factorisation in `bytes`, if they are complete and have this key.
    pub(crate) fn parse(
        &self,
        bytes: &[u8],
        num_embeddings: u64,
        embedding_dim: usize,
    ) -> Option<Factorized> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).ok()?;
        let metadata = metadata.metadata().as_ref()?;
        if *metadata.get("key")? != self.text {
            return None;
        }
        let tensors = SafeTensors::deserialize(bytes).ok()?;
        let read = |name: &str| -> Option<(Vec<usize>, Vec<f32>)> {
            let view = tensors.tensor(name).ok()?;
            let (elements, _) = view.data().as_chunks::<4>();
            let values = elements.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            (view.dtype() == Dtype::F32).then(|| (view.shape().to_vec(), values))
        };
        if let Some(shape) = self.codes {
            let (_, entries) = read(BOOKS)?;
            let projection = read(PROJECTION).map(|(_, projection)| projection);
            let fits = entries.len() == shape.books * shape.book_len() * shape.width()
                && projection.as_ref().map(Vec::len)
                    == shape.projected.then_some(shape.inner_dim() * embedding_dim);
            return fits.then_some(Factorized::Codes(Codebooks { shape, entries, projection }));
        }
        if let Some((shape, basis)) = read("basis") {
            let &[dim, rank] = shape.as_slice() else { return None };
            return (dim == embedding_dim).then_some(Factorized::LowRank { rank, basis });
        }
        let (mut p, mut q, mut ranks, mut cores) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        while let Some((shape, core)) = read(&format!("core{}", cores.len())) {
            let &[rows, left, columns, _] = shape.as_slice() else { return None };
            p.push(u32::try_from(rows).ok()?);
            q.push(u32::try_from(columns).ok()?);
            ranks.push(u32::try_from(left).ok()?);
            cores.push(core);
        }
        let shape = TtShape::new(num_embeddings, &p, &q, ranks.get(1..)?).ok()?;
        let places = tensors.tensor(PLACES).ok().map(|view| {
            let (elements, _) = view.data().as_chunks::<4>();
            elements.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect::<Vec<_>>()
        });
        let in_place = places.as_ref().is_none_or(|places| {
            places.len() as u64 == num_embeddings
                && places.iter().all(|&place| u64::from(place) < num_embeddings)
        });
        let fits = cores.iter().enumerate().all(|(k, core)| core.len() as u64 == shape.core_len(k));
        let fits = fits && in_place && shape.embedding_dim() == embedding_dim;
        fits.then_some(Factorized::Tt { shape, cores, places })
    }

    /// A factorisation as a safetensors file, with this key.
    pub(crate) fn bytes<'f>(
        &self,
        factorized: &'f Factorized,
        embedding_dim: usize,
    ) -> Result<Vec<u8>> {
        let arrays: Vec<Array<'f>> = match factorized {
            Factorized::LowRank { rank, basis } => {
                vec![("basis".to_owned(), vec![embedding_dim, *rank], basis.as_slice())]
            }
            Factorized::Codes(Codebooks { entries, projection, .. }) => {
                let array =
                    |name: &str, values: &'f [f32]| (name.to_owned(), vec![values.len()], values);
                let projection = projection.iter().map(|values| array(PROJECTION, values));
                projection.chain([array(BOOKS, entries)]).collect()
            }
            Factorized::Tt { shape, cores, .. } => {
                let array = |(k, core): (usize, &'_ Vec<f32>)| {
                    let rows = shape.row_factors()[k] as usize;
                    vec![
                        rows,
                        shape.rank(k),
                        shape.column_factor(k),
                        core.len() / (rows * shape.rank(k) * shape.column_factor(k)),
                    ]
                };
                let arrays = cores.iter().enumerate();
                arrays
                    .map(|(k, core)| (format!("core{k}"), array((k, core)), core.as_slice()))
                    .collect()
            }
        };
        let bytes: Vec<Vec<u8>> = arrays
            .iter()
            .map(|(_, _, values)| values.iter().flat_map(|x| x.to_le_bytes()).collect())
            .collect();
        let places = match factorized {
            Factorized::Tt { places: Some(places), .. } => {
                places.iter().flat_map(|x| x.to_le_bytes()).collect()
            }
            _ => Vec::new(),
        };
        let places = (!places.is_empty())
            .then(|| Ok((PLACES, TensorView::new(Dtype::U32, vec![places.len() / 4], &places)?)));
        let views = arrays
            .iter()
            .zip(&bytes)
            .map(|((name, shape, _), bytes)| {
                Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?))
            })
            .chain(places);
        let metadata = HashMap::from([("key".to_owned(), self.text.clone())]);
        Ok(safetensors::serialize(views.collect::<Result<Vec<_>>>()?, Some(metadata))?)
    }
}
