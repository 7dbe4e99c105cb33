//! Directories of `torch.distributed.checkpoint`: `.metadata`, a pickle, says which part of which
//! file (`__0_0.distcp`) holds which part of which tensor. Each part is what `torch.save` writes of
//! a tensor.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::mapped::Mapped;
use super::pickle::{self, DistributedChunk, DistributedTensor};
use super::tensor::{Data, DecodedCache, ElementLayout};
use super::{CheckpointError, Contents, Tensor, archive, sharded, torch};

/// The file that lists the tensors.
pub(super) const METADATA: &str = ".metadata";

/// The most parts of one tensor.
const MAX_CHUNKS: usize = 1024;

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
    check(shape, chunks)?;
    let mut parts = Vec::new();
    for chunk in chunks {
        let part = files.read(chunk)?;
        if part.shape() != chunk.sizes || !part.is_plain() {
            return Err(format!("a part has shape {:?}: expected {:?}", part.shape(), chunk.sizes));
        }
        parts.push((part, chunk.offsets.clone()));
    }
    let element_type = parts.first().map(|(part, _)| part.element_type());
    let element_type = element_type.ok_or("it has no parts")?;
    if let [(_, _)] = parts[..]
        && let Some((part, _)) = parts.pop()
    {
        return Ok(part);
    }
    if parts.iter().any(|(part, _)| part.element_type() != element_type) {
        return Err("its parts have different types".to_owned());
    }
    let extents = shape.clone();
    let size = element_type.size();
    let lens = files.open.values().flatten().map(|map| map.as_ref().len() as u64);
    let limit = lens.fold(MAX_EXPANSION, u64::saturating_add);
    if extents.iter().product::<u64>().saturating_mul(size) > limit {
        return Err(format!("shape {shape:?}: expected at most {limit} bytes"));
    }
    let load = move || {
        let elements = extents.iter().product::<u64>();
        let len = usize::try_from(elements.saturating_mul(size)).map_err(|e| e.to_string())?;
        let mut whole = vec![0; len];
        for (part, offsets) in &parts {
            let bytes = part.bytes().map_err(|error| error.to_string())?;
            place(&bytes, part.shape(), offsets, &extents, size, &mut whole)
                .ok_or("its parts do not fit")?;
        }
        Ok(whole)
    };
    let data = Data::Decoded { cache: Arc::clone(cache), id, load: Box::new(load) };
    let layout = ElementLayout::ROW_MAJOR_LE;
    Tensor::new(files.path, String::new(), element_type, shape.clone(), layout, data)
        .map_err(|error| error.to_string())
}

/// Refuses parts that overlap or do not make the whole tensor.
fn check(shape: &[u64], chunks: &[DistributedChunk<'_>]) -> Result<(), String> {
    let elements = |sizes: &[u64]| sizes.iter().try_fold(1, |n: u64, &size| n.checked_mul(size));
    if chunks.len() > MAX_CHUNKS {
        return Err(format!("{} parts, expected at most {MAX_CHUNKS}", chunks.len()));
    }
    let mut sum = Some(0u64);
    for (at, chunk) in chunks.iter().enumerate() {
        let DistributedChunk { offsets, sizes, .. } = chunk;
        let ends = offsets.iter().zip(sizes).map(|(&offset, &size)| offset.checked_add(size));
        let inside = offsets.len() == shape.len()
            && sizes.len() == shape.len()
            && ends.zip(shape).all(|(end, &extent)| end.is_some_and(|end| end <= extent));
        if !inside {
            return Err(format!(
                "a part of {sizes:?} elements from {offsets:?} on is outside its shape, {shape:?}"
            ));
        }
        let overlaps = |other: &DistributedChunk<'_>| {
            let both = other.offsets.iter().zip(&other.sizes).zip(offsets.iter().zip(sizes));
            both.into_iter()
                .all(|((a, len_a), (b, len_b))| a < &(b + len_b) && b < &(a + len_a))
        };
        if chunks[..at].iter().any(overlaps) {
            return Err("two of its parts overlap".to_owned());
        }
        sum = sum.zip(elements(sizes)).and_then(|(sum, count)| sum.checked_add(count));
    }
    if sum.is_none() || sum != elements(shape) {
        return Err("parts of it are missing".to_owned());
    }
    Ok(())
}

/// Copies a part of shape `sizes` to its place in a tensor of shape `extents`.
fn place(
    part: &[u8],
    sizes: &[u64],
    offsets: &[u64],
    extents: &[u64],
    element: u64,
    whole: &mut [u8],
) -> Option<()> {
    let run = usize::try_from(sizes.last().copied().unwrap_or(1).checked_mul(element)?).ok()?;
    for (number, bytes) in (0u64..).zip(part.chunks_exact(run.max(1))) {
        // The position of the run's first element.
        let (mut rest, mut at, mut stride) = (number, 0u64, 1u64);
        for (k, ((&size, &offset), &extent)) in
            sizes.iter().zip(offsets).zip(extents).enumerate().rev()
        {
            let within = if k + 1 == sizes.len() {
                0
            } else {
                let within = rest.checked_rem(size)?;
                rest /= size;
                within
            };
            at = at.checked_add(offset.checked_add(within)?.checked_mul(stride)?)?;
            stride = stride.checked_mul(extent)?;
        }
        let start = usize::try_from(at.checked_mul(element)?).ok()?;
        whole.get_mut(start..start.checked_add(run)?)?.copy_from_slice(bytes);
    }
    Some(())
}
