//! Tensors from parts, which several processes had.

use std::path::Path;
use std::sync::Arc;

use super::Tensor;
use super::tensor::{Data, DecodedCache, ElementLayout};

/// The most parts of one tensor.
const MAX_PARTS: usize = 1024;

/// Refuses parts that overlap or do not make the whole tensor.
///
/// A part is the place of its first element in each dimension, and its shape.
pub(super) fn check<'p>(
    shape: &[u64],
    parts: impl Iterator<Item = (&'p [u64], &'p [u64])>,
) -> Result<(), String> {
    let parts: Vec<_> = parts.take(MAX_PARTS + 1).collect();
    let elements = |sizes: &[u64]| sizes.iter().try_fold(1, |n: u64, &size| n.checked_mul(size));
    if parts.len() > MAX_PARTS {
        return Err(format!("more than {MAX_PARTS} parts"));
    }
    let mut sum = Some(0u64);
    for (at, &(offsets, sizes)) in parts.iter().enumerate() {
        let ends = offsets.iter().zip(sizes).map(|(&offset, &size)| offset.checked_add(size));
        let inside = offsets.len() == shape.len()
            && sizes.len() == shape.len()
            && ends.zip(shape).all(|(end, &extent)| end.is_some_and(|end| end <= extent));
        if !inside {
            return Err(format!(
                "a part of {sizes:?} elements from {offsets:?} on is outside its shape, {shape:?}"
            ));
        }
        let overlaps = |other: &(&[u64], &[u64])| {
            let both = other.0.iter().zip(other.1).zip(offsets.iter().zip(sizes));
            both.into_iter()
                .all(|((a, len_a), (b, len_b))| a < &(b + len_b) && b < &(a + len_a))
        };
        if parts[..at].iter().any(overlaps) {
            return Err("two of its parts overlap".to_owned());
        }
        sum = sum.zip(elements(sizes)).and_then(|(sum, count)| sum.checked_add(count));
    }
    if sum.is_none() || sum != elements(shape) {
        return Err("parts of it are missing".to_owned());
    }
    Ok(())
}

/// A tensor from its parts, which were checked, each with the place of its first element. It may
/// take `limit` bytes.
pub(super) fn join(
    path: &Arc<Path>,
    shape: &[u64],
    mut parts: Vec<(Tensor, Vec<u64>)>,
    limit: u64,
    (cache, id): (&Arc<DecodedCache>, usize),
) -> Result<Tensor, String> {
    let element_type = parts.first().map(|(part, _)| part.element_type());
    let element_type = element_type.ok_or("it has no parts")?;
    let is_same = |(part, _): &(Tensor, _)| part.element_type() == element_type && part.is_plain();
    if !parts.iter().all(is_same) {
        return Err(
            "its parts have different types, or the order of bytes of another machine".into()
        );
    }
    if parts.len() == 1
        && let Some((part, _)) = parts.pop()
    {
        return Ok(part);
    }
    let extents = shape.to_vec();
    let size = element_type.size();
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
    Tensor::new(path, String::new(), element_type, shape.to_vec(), layout, data)
        .map_err(|error| error.to_string())
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
