//! The normal equations of one slice of a core, and their solution by conjugate gradients.

/// `sum w L^T L X_j R R^T = sum w L^T E_j R^T`, j for j: the left side as it is applied to a slice,
/// and the right side.
pub(super) struct Normal<'s> {
    /// L for each combination of digits on the left, a x r.
    pub(super) left: &'s [f32],
    pub(super) a: usize,
    /// r and t: the ranks beside the core.
    pub(super) ranks: (usize, usize),
    pub(super) matrix: Matrix<'s>,
    /// The right side, (j, s, t).
    pub(super) target: Vec<f64>,
    /// The weighted squares of the rows.
    pub(super) norm: f64,
}

/// A normal matrix.
pub(super) enum Matrix<'s> {
    /// `(sum L^T L) X (sum R R^T)` over all combinations, if rows weigh the same; and for each
    /// combination on the left from `first` on what is added to it or, where rows are padding,
    /// taken from it: `L^T L X M`, M being t x t.
    Products { common: Option<&'s Grams>, first: usize, grams: Vec<f32> },
    /// `sum w L^T L`, where nothing is on the right: r x r.
    Dense(Vec<f64>),
}

/// `sum L^T L` and `sum R R^T`.
pub(super) struct Grams {
    pub(super) left: Vec<f64>,
    pub(super) right: Vec<f64>,
}

/// The most steps of conjugate gradients; they stop earlier when the residual's square has shrunk
/// by this factor.
const STEPS: usize = 40;
const SMALLER: f64 = 1e-12;
/// The regularisation, relative to the matrix's scale: elements that few rows or none determine do
/// not drift.
const HOLD: f64 = 1e-5;

impl Normal<'_> {
    /// Runs conjugate gradients from `old`. Returns a better slice, or `old` if none was found, and
    /// the remaining squared error.
    pub(super) fn descend(&self, old: Vec<f64>) -> (Vec<f64>, f64) {
        let mut product = vec![0.0; old.len()];
        self.apply(&old, &mut product);
        let start: Vec<f64> =
            self.target.iter().zip(&product).map(|(target, p)| target - p).collect();
        let before = self.norm - dot(&old, &self.target) - dot(&old, &start);

        // The change of the slice; small, so that the change of the error is not a difference of
        // large numbers.
        let mut change = vec![0.0; old.len()];
        let mut residual = start.clone();
        let mut direction = start.clone();
        let mut square = dot(&start, &start);
        let enough = square * SMALLER;
        let mut hold = match self.matrix {
            Matrix::Products { common: Some(_), .. } => HOLD,
            _ => 0.0,
        };
        for step in 0..STEPS {
            if square <= enough {
                break;
            }
            self.apply(&direction, &mut product);
            if step == 0 {
                hold = f64::max(hold, HOLD * dot(&direction, &product) / square);
            }
            add(hold, &direction, &mut product);
            let curvature = dot(&direction, &product);
            if curvature.is_nan() || curvature <= 0.0 {
                break;
            }
            let length = square / curvature;
            add(length, &direction, &mut change);
            add(-length, &product, &mut residual);
            let next = dot(&residual, &residual);
            direction
                .iter_mut()
                .zip(&residual)
                .for_each(|(d, r)| *d = r + next / square * *d);
            square = next;
        }
        self.apply(&change, &mut product);
        let gain = 2.0 * dot(&change, &start) - dot(&change, &product);
        // `<` also rejects NaN.
        if gain > 0.0 {
            let new = old.iter().zip(&change).map(|(old, change)| old + change).collect();
            (new, before - gain)
        } else {
            (old, before)
        }
    }

    /// The normal matrix times `x`.
    fn apply(&self, x: &[f64], out: &mut [f64]) {
        let ((r, t), a) = (self.ranks, self.a);
        out.fill(0.0);
        let slices = x.chunks(r * t).zip(out.chunks_mut(r * t));
        let (common, first, grams) = match &self.matrix {
            Matrix::Dense(matrix) => {
                for (x, out) in slices {
                    matrix.chunks(r).zip(out).for_each(|(row, out)| *out = dot(row, x));
                }
                return;
            }
            Matrix::Products { common, first, grams } => (common, *first, grams),
        };
        let (mut half, mut whole) = (vec![0.0; t], vec![0.0; t]);
        for (x, out) in slices {
            if let Some(common) = common {
                for (left, out) in common.left.chunks(r).zip(out.chunks_mut(t)) {
                    half.fill(0.0);
                    left.iter().zip(x.chunks(t)).for_each(|(&l, x)| add(l, x, &mut half));
                    half.iter()
                        .zip(common.right.chunks(t))
                        .for_each(|(&h, right)| add(h, right, out));
                }
            }
            for (left, gram) in self.left.chunks(a * r).skip(first).zip(grams.chunks(t * t)) {
                for left in left.chunks(r) {
                    half.fill(0.0);
                    whole.fill(0.0);
                    left.iter()
                        .zip(x.chunks(t))
                        .for_each(|(&l, x)| add(f64::from(l), x, &mut half));
                    for (&h, gram) in half.iter().zip(gram.chunks(t)) {
                        whole.iter_mut().zip(gram).for_each(|(w, &g)| *w += h * f64::from(g));
                    }
                    left.iter()
                        .zip(out.chunks_mut(t))
                        .for_each(|(&l, out)| add(f64::from(l), &whole, out));
                }
            }
        }
    }
}

fn add(factor: f64, x: &[f64], to: &mut [f64]) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += factor * x);
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
