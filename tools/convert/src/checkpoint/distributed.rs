//! Directories of `torch.distributed.checkpoint`: `.metadata`, a pickle, says which part of which
//! file (`__0_0.distcp`) holds which part of which tensor. Each part is what `torch.save` writes of
//! a tensor.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::mapped::Mapped;
use super::pickle::{self, DistributedChunk, DistributedTensor};
use super::tensor::DecodedCache;
use super::{CheckpointError, Contents, Tensor, archive, parts, sharded, torch};

/// The file that lists the tensors.
pub(super) const METADATA: &str = ".metadata";

/// What a tensor may take beyond all bytes of the files: parts that are views may be larger.
const MAX_EXPANSION: u64 = 64 << 20;

/// The tensors of the directory with this `.metadata`.
pub(super) fn read(path: &Arc<Path>, metadata: &Mapped) -> Result<Contents, CheckpointError> {
    let refused = |reason: String| CheckpointError::file(path, reason);
    let pickle = pickle::read(metadata.as_ref()).map_err(refused)?;
    let found = pickle.distributed().ok_or_else(|| {
        refused("expected the metadata of torch.distributed.checkpoint, a list of tensors".into())
    })?;
    let mut files = Files { path, open: HashMap::new(), read: HashMap::new() };
    let cache = Arc::new(DecodedCache::default());
    // The processes wrote the list, each its part: it does not keep the order of the model.
    let mut contents = Contents::default();
    for (id, tensor) in found.into_iter().enumerate() {
        let name = tensor.name.to_owned();
        match whole(&mut files, &tensor, (&cache, id)) {
            Ok(tensor) => contents.tensors.push(tensor.renamed(name)),
            Err(reason) => drop(contents.unreadable.insert(name, reason)),
        }
    }
    Ok(contents)
}

/// The files of the parts.
struct Files<'p> {
    /// That of the metadata.
    path: &'p Arc<Path>,
    open: HashMap<String, Result<Mapped, String>>,
    /// The bytes of the parts that were read of each file.
    read: HashMap<String, u64>,
}

impl Files<'_> {
    /// The tensor of a part.
    fn read(&mut self, chunk: &DistributedChunk<'_>) -> Result<Tensor, String> {
        let (file, start, len) = chunk.place.ok_or("the metadata do not say where a part is")?;
        let place: Arc<Path> = sharded::beside(self.path, file)?.into();
        let open = || {
            Mapped::open(&place)
                .map_err(|error| format!("a part of it is in {}: {error}", place.display()))
        };
        let map = self.open.entry(file.to_owned()).or_insert_with(open).clone()?;
        // Parts do not overlap: many that do would take long.
        let read = self.read.entry(file.to_owned()).or_default();
        *read = read.saturating_add(len);
        if *read > map.as_ref().len() as u64 {
            return Err(format!("the parts in {file:?} are longer than the file"));
        }
        let range =
            usize::try_from(start).ok().zip(usize::try_from(start.saturating_add(len)).ok());
        let part = range.and_then(|(start, end)| map.part(start..end));
        let part = part.ok_or_else(|| format!("a part of it is beyond the end of {file:?}"))?;
        let wrong = |error: CheckpointError| format!("in {file:?}: {error}");
        let archive = archive::open(&place, &part).map_err(wrong)?;
        let Contents { mut tensors, .. } =
            torch::read_zip(&place, &part, archive).map_err(wrong)?;
        match (tensors.pop(), tensors.is_empty()) {
            (Some(tensor), true) => Ok(tensor),
            _ => Err(format!("in {file:?}: expected one tensor in each part")),
        }
    }
}

/// A tensor from all of its parts.
fn whole(
    files: &mut Files<'_>,
    DistributedTensor { shape, chunks, .. }: &DistributedTensor<'_>,
    (cache, id): (&Arc<DecodedCache>, usize),
) -> Result<Tensor, String> {
    parts::check(shape, chunks.iter().map(|of| (&of.offsets[..], &of.sizes[..])))?;
    let mut parts = Vec::new();
    for chunk in chunks {
        let part = files.read(chunk)?;
        if part.shape() != chunk.sizes {
            return Err(format!("a part has shape {:?}: expected {:?}", part.shape(), chunk.sizes));
        }
        parts.push((part, chunk.offsets.clone()));
    }
    let lens = files.open.values().flatten().map(|map| map.as_ref().len() as u64);
    let limit = lens.fold(MAX_EXPANSION, u64::saturating_add);
    parts::join(files.path, shape, parts, limit, (cache, id))
}
