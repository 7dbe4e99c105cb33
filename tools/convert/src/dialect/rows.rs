//! The rows of a table in a checkpoint as numbers, whatever their form.
//!
//! FBGEMM quantises each row by itself: `value = scale * code + offset`. Its fused rows end with
//! the scale and the offset: two f32 after bytes, or two f16 after nibbles, of which the low one is
//! the even column. TorchRec keeps them apart, in `weight_qscale` and `weight_qbias`.

use super::{require, require_float};
use crate::{
    checkpoint::{Checkpoint, ElementType, Tensor},
    factorize::Rows,
    spec::{Quantized, TableSpec},
};
use anyhow::{Context, Result, bail, ensure};
use half::f16;
use ttrec::dtype::Dtype;

/// Rows whose scales are checked before the form of a tensor of bytes is taken for granted.
const CHECKED: u64 = 1000;
/// In fewer rows, other bytes could be scales by chance.
const CERTAIN: u64 = 16;

/// The rows of a table.
#[derive(Clone, Copy)]
pub(crate) struct TableRows<'c> {
    pub(crate) tensor: &'c Tensor,
    pub(crate) num_rows: u64,
    pub(crate) columns: usize,
    codes: Option<Codes<'c>>,
    /// The number that each row is multiplied with.
    weights: Option<&'c Tensor>,
    /// A row that is zeros, whatever the tensor has.
    zero_row: Option<u64>,
}

/// Codes that are bytes or nibbles.
#[derive(Clone, Copy)]
struct Codes<'c> {
    form: Quantized,
    /// The scale and the offset of each row; `None`: at the end of the row.
    apart: Option<[&'c Tensor; 2]>,
}

impl<'c> TableRows<'c> {
    /// The rows of a tensor of floats, or of quantised rows as the spec or the numbers say.
    pub(crate) fn of(
        checkpoint: &'c Checkpoint,
        tensor: &'c Tensor,
        spec: &TableSpec,
    ) -> Result<Self> {
        let name = tensor.name();
        let &[num_rows, width] = tensor.shape() else {
            bail!("tensor {name:?} has shape {:?}: expected rows x columns", tensor.shape());
        };
        let is_bytes = tensor.element_type() == ElementType::U8;
        ensure!(
            is_bytes || spec.quantized.is_none(),
            "`quantized` is set, but tensor {name:?} is {}: expected u8",
            tensor.element_type()
        );
        let codes = if is_bytes {
            Some(Codes::of(checkpoint, tensor, [num_rows, width], spec.quantized)?)
        } else {
            require_float(tensor)?;
            None
        };
        let columns = codes.map_or(Some(width), |codes| codes.columns(width));
        let columns = columns.and_then(|columns| usize::try_from(columns).ok());
        let columns = columns.with_context(|| format!("tensor {name:?}: {width} columns"))?;
        Ok(Self { tensor, num_rows, columns, codes, weights: None, zero_row: None })
    }

    /// The rows, each multiplied with its number of `weights`.
    pub(super) fn weighted(self, weights: &'c Tensor) -> Result<Self> {
        require_float(weights)?;
        ensure!(
            weights.shape() == [self.num_rows],
            "tensor {:?} has shape {:?}: expected [{}], a number for each row of {:?}",
            weights.name(),
            weights.shape(),
            self.num_rows,
            self.tensor.name()
        );
        Ok(Self { weights: Some(weights), ..self })
    }

    /// The rows, of which `row` is zeros.
    pub(super) fn with_zero_row(self, row: u64) -> Self {
        Self { zero_row: Some(row), ..self }
    }

    /// What the numbers are made of, for keys of finished work.
    pub(crate) fn label(&self) -> String {
        let Self { tensor, codes, weights, zero_row, .. } = self;
        let form = codes.map(|codes| codes.form);
        match (form, weights, zero_row) {
            (None, None, None) => tensor.name().to_owned(),
            _ => format!("{} {form:?} {:?} {zero_row:?}", tensor.name(), weights.map(Tensor::name)),
        }
    }

    /// The bytes in the checkpoint.
    pub(super) fn checkpoint_bytes(&self) -> u64 {
        let apart = self.codes.and_then(|codes| codes.apart).into_iter().flatten();
        let tensors = [self.tensor].into_iter().chain(apart).chain(self.weights);
        let bytes = |tensor: &Tensor| tensor.len().saturating_mul(tensor.element_type().size());
        tensors.map(bytes).fold(0, u64::saturating_add)
    }

    /// The stored type that holds the codes of quantised rows.
    pub(super) fn dtype_of_codes(&self) -> Option<Dtype> {
        self.codes.map(|codes| match codes.form {
            Quantized::Byte => Dtype::I8,
            Quantized::Nibble => Dtype::I4,
        })
    }

    /// Fills `out`, whole rows, from row `first` on.
    pub(crate) fn read(&self, first: u64, out: &mut [f32]) -> Result<()> {
        let columns = self.columns.max(1);
        match self.codes {
            None => self.tensor.stream_f32(first * columns as u64, out)?,
            Some(codes) => {
                for (row, out) in (first..).zip(out.chunks_exact_mut(columns)) {
                    let QuantizedRow { scale, offset, codes } = codes.row(self.tensor, row)?;
                    // A product of f32 is exact in f64, so that the sum is rounded once.
                    let value =
                        |code: u8| (f64::from(scale) * f64::from(code) + f64::from(offset)) as f32;
                    out.iter_mut().zip(codes).for_each(|(out, code)| *out = value(code));
                }
            }
        }
        if let Some(weights) = self.weights {
            let mut factors = vec![0.0; out.len() / columns];
            weights.read_f32(first, &mut factors)?;
            for (row, factor) in out.chunks_exact_mut(columns).zip(factors) {
                row.iter_mut().for_each(|x| *x *= factor);
            }
        }
        let zero = self.zero_row.and_then(|row| usize::try_from(row.checked_sub(first)?).ok());
        if let Some(zero) = zero.and_then(|row| out.chunks_exact_mut(columns).nth(row)) {
            zero.fill(0.0);
        }
        Ok(())
    }

    /// Fills `out` with stored rows of `dtype` from row `first` on, if they hold the codes as they
    /// are; `false`, with nothing done, if the numbers have to be encoded.
    pub(crate) fn copy_codes(&self, first: u64, dtype: Dtype, out: &mut [u8]) -> Result<bool> {
        let (Some(codes), None, None) = (self.codes, self.weights, self.zero_row) else {
            return Ok(false);
        };
        if self.dtype_of_codes() != Some(dtype) || !codes.header_fits(dtype) {
            return Ok(false);
        }
        for (row, out) in (first..).zip(out.chunks_exact_mut(dtype.row_len(self.columns))) {
            let QuantizedRow { scale, offset, codes } = codes.row(self.tensor, row)?;
            // A stored scale is above 0. With a scale of 0 every number is the offset.
            let (scale, codes) = match scale {
                0.0 => (1.0, vec![0; codes.len()]),
                scale => (scale, codes),
            };
            let (header, elements) = out.split_at_mut(dtype.row_header_len());
            let (scale_out, offset_out) = header.split_at_mut(header.len() / 2);
            if dtype == Dtype::I8 {
                // Stored bytes are signed.
                let offset = f64::from(offset) + 128.0 * f64::from(scale);
                scale_out.copy_from_slice(&scale.to_le_bytes());
                offset_out.copy_from_slice(&(offset as f32).to_le_bytes());
                let signed = codes.iter().map(|code| code ^ 0x80);
                elements.iter_mut().zip(signed).for_each(|(out, code)| *out = code);
            } else {
                scale_out.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
                offset_out.copy_from_slice(&f16::from_f32(offset).to_le_bytes());
                for (out, pair) in elements.iter_mut().zip(codes.chunks(2)) {
                    *out = pair[0] | pair.get(1).map_or(0, |high| high << 4);
                }
            }
        }
        Ok(true)
    }
}

/// A row before it is multiplied out.
struct QuantizedRow {
    scale: f32,
    offset: f32,
    codes: Vec<u8>,
}

impl<'c> Codes<'c> {
    fn of(
        checkpoint: &'c Checkpoint,
        tensor: &'c Tensor,
        [rows, width]: [u64; 2],
        given: Option<Quantized>,
    ) -> Result<Self> {
        let name = tensor.name();
        let scale = checkpoint.find(&format!("{name}_qscale"))?;
        let apart = match scale {
            Some(scale) => {
                let offset = require(checkpoint, &format!("{name}_qbias"))?;
                for part in [scale, offset] {
                    require_float(part)?;
                    ensure!(
                        matches!(part.shape(), [n] | [n, 1] if *n == rows),
                        "tensor {:?} has shape {:?}: expected [{rows}, 1]",
                        part.name(),
                        part.shape()
                    );
                }
                Some([scale, offset])
            }
            None => None,
        };
        let forms = [Quantized::Byte, Quantized::Nibble].map(|form| Self { form, apart });
        if let Some(given) = given {
            let found = forms.into_iter().find(|codes| codes.form == given);
            let found = found.filter(|codes| codes.columns(width).is_some());
            return found.with_context(|| {
                format!("tensor {name:?} has {width} columns: too few for a scale and an offset")
            });
        }
        let both = || {
            let dim = |codes: Self| codes.columns(width).unwrap_or(0);
            format!("\"byte\" (embedding_dim {}) or \"nibble\" ({})", dim(forms[0]), dim(forms[1]))
        };
        if apart.is_some() {
            bail!("`quantized` is missing: tensor {name:?} is u8: set `quantized` to {}", both());
        }
        let fit = |codes: &Self| {
            let step = (rows / CHECKED).max(1) as usize;
            let mut checked = (0..rows).step_by(step);
            // FBGEMM's nibbles never have a scale of 0, as half of a round f32 is.
            let least = if codes.form == Quantized::Nibble {
                f32::MIN_POSITIVE
            } else {
                0.0
            };
            let fits = |row| codes.row(tensor, row).is_ok_and(|row| row.scale >= least);
            codes.columns(width).is_some() && checked.all(fits)
        };
        match forms.iter().filter(|codes| fit(codes)).collect::<Vec<_>>()[..] {
            [] => bail!(
                "tensor {name:?} is u8, and its rows do not end with a scale and an offset: \
                 expected floats, or FBGEMM's quantised rows"
            ),
            [only] if rows >= CERTAIN => Ok(*only),
            _ => bail!(
                "`quantized` is missing: tensor {name:?} is u8: if its rows are FBGEMM's quantised \
                 rows, set `quantized` to {}",
                both()
            ),
        }
    }

    /// The bytes of the scale and the offset at the end of a row.
    fn trailer(&self) -> u64 {
        match (self.apart, self.form) {
            (Some(_), _) => 0,
            (None, Quantized::Byte) => 8,
            (None, Quantized::Nibble) => 4,
        }
    }

    /// The columns of rows of `width` bytes.
    fn columns(&self, width: u64) -> Option<u64> {
        let codes = width.checked_sub(self.trailer()).filter(|&codes| codes > 0)?;
        match self.form {
            Quantized::Byte => Some(codes),
            Quantized::Nibble => codes.checked_mul(2),
        }
    }

    /// Whether a stored row of `dtype` holds the scale and the offset without loss.
    fn header_fits(&self, dtype: Dtype) -> bool {
        let is_half = |tensor: &Tensor| tensor.element_type() == ElementType::F16;
        dtype == Dtype::I8 || self.apart.is_none_or(|parts| parts.iter().all(|part| is_half(part)))
    }

    fn row(&self, tensor: &Tensor, row: u64) -> Result<QuantizedRow> {
        let width = tensor.shape().get(1).copied().unwrap_or(0);
        let mut codes = vec![0; usize::try_from(width)?];
        tensor.read_u8(row * width, &mut codes)?;
        let trailer = codes.split_off(codes.len() - self.trailer() as usize);
        let [scale, offset] = match (self.apart, &trailer[..]) {
            (Some(parts), _) => {
                let mut header = [0.0; 2];
                for (part, out) in parts.iter().zip(&mut header) {
                    part.read_f32(row, std::slice::from_mut(out))?;
                }
                header
            }
            (None, &[a, b, c, d, e, f, g, h]) => {
                [f32::from_le_bytes([a, b, c, d]), f32::from_le_bytes([e, f, g, h])]
            }
            (None, &[a, b, c, d]) => {
                [f16::from_le_bytes([a, b]).to_f32(), f16::from_le_bytes([c, d]).to_f32()]
            }
            _ => bail!("tensor {:?}: rows of {width} bytes", tensor.name()),
        };
        ensure!(
            scale >= 0.0 && scale.is_finite() && offset.is_finite(),
            "tensor {:?}, row {row}: its scale is {scale} and its offset {offset}: expected finite \
             numbers, and no negative scale",
            tensor.name()
        );
        if self.form == Quantized::Nibble {
            codes = codes.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect();
        }
        Ok(QuantizedRow { scale, offset, codes })
    }
}

impl Rows for TableRows<'_> {
    fn num_embeddings(&self) -> u64 {
        self.num_rows
    }

    fn embedding_dim(&self) -> usize {
        self.columns
    }

    fn read(&self, first: u64, out: &mut [f32]) -> Result<()> {
        self.read(first, out)?;
        match out.iter().position(|x| !x.is_finite()) {
            Some(at) => {
                let (row, column) = (first + (at / self.columns) as u64, at % self.columns);
                bail!(
                    "tensor {:?}, row {row}, column {column}: {} cannot be factorised",
                    self.tensor.name(),
                    out[at]
                );
            }
            None => Ok(()),
        }
    }
}
