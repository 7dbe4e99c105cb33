//! Corrects what a fuzzer does not guess, so that it reaches the code behind those checks.

/// Corrects the header's length and every checksum, as far as the counts allow. Offsets as in
/// `docs/format.md`.
pub(crate) fn reseal(buf: &mut [u8]) -> Option<()> {
    let u32_at = |buf: &[u8], at: usize| {
        Some(u32::from_le_bytes(buf.get(at..at + 4)?.try_into().ok()?) as usize)
    };
    let u64_at = |buf: &[u8], at: usize| {
        Some(u64::from_le_bytes(buf.get(at..at + 8)?.try_into().ok()?) as usize)
    };
    let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

    let len = buf.len() as u64;
    buf.get_mut(16..24)?.copy_from_slice(&len.to_le_bytes());
    let (tables, sections, names) = (u32_at(buf, 24)?, u32_at(buf, 28)?, u32_at(buf, 32)?);
    let first = 64 + tables.checked_mul(128)?;
    let (layers, model_tables) = (u32_at(buf, 40)?, u32_at(buf, 44)?);
    let model = layers.checked_mul(32)?.checked_add(model_tables.checked_mul(4)?)?;
    let records = first.checked_add(sections.checked_mul(32)?)?.checked_add(model)?;
    let end = records.checked_add(names)?.checked_next_multiple_of(64)?;
    buf.get(..end)?;
    for section in (first..).step_by(32).take(sections) {
        let (offset, len) = (u64_at(buf, section)?, u64_at(buf, section + 8)?);
        let padded = len.checked_next_multiple_of(64).and_then(|len| offset.checked_add(len));
        if let Some(bytes) = padded.and_then(|end| buf.get(offset..end)) {
            let sum = crc.checksum(bytes);
            buf.get_mut(section + 16..section + 20)?.copy_from_slice(&sum.to_le_bytes());
        }
    }
    buf.get_mut(36..40)?.fill(0);
    let sum = crc.checksum(buf.get(..end)?);
    buf.get_mut(36..40)?.copy_from_slice(&sum.to_le_bytes());
    Some(())
}
