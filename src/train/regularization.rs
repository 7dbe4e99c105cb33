//! What keeps the parameters of a model, and their steps, small.

use super::TrainError;

/// What keeps the parameters of a [`Dlrm`](super::Dlrm), and their steps, small. The default does
/// nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Regularization {
    /// Adds `l2 / 2` times the mean over the samples of the sum of the squared lengths of the
    /// vectors that the tables give a sample. So rows that a batch does not look up do not shrink,
    /// as in the papers of BPR and LightGCN. A step returns its loss without this term.
    pub l2: f64,
    /// Decoupled weight decay (Loshchilov and Hutter, 2019): a step first multiplies the weights
    /// of the layers, but no biases, by `1 - weight_decay learning_rate`.
    pub weight_decay: f64,
    /// The greatest length of a gradient; a longer one is scaled to this length. The unit is that
    /// of the [`Optimizer`](super::Optimizer): a slice of a core, a row of a table, a row of a
    /// layer's weights, or all its biases. Infinite: no limit.
    pub clip_norm: f64,
    /// The share of the outputs of hidden layers that a step sets to 0; it divides the others by 1
    /// minus this share. Which they are depends on the seed of the model and on the number of steps
    /// taken.
    pub dropout: f64,
}

impl Default for Regularization {
    fn default() -> Self {
        Self { l2: 0.0, weight_decay: 0.0, clip_norm: f64::INFINITY, dropout: 0.0 }
    }
}

impl Regularization {
    /// The factor of a vector of one of some samples in its gradient.
    pub(super) fn l2_of_sample(&self, samples: usize) -> f32 {
        (self.l2 / samples.max(1) as f64) as f32
    }

    /// Refuses numbers that are out of range.
    ///
    /// # Errors
    /// [`TrainError::Regularization`].
    pub fn check(&self) -> Result<(), TrainError> {
        let Self { l2, weight_decay, clip_norm, dropout } = *self;
        let finite = 0.0..f64::INFINITY;
        let fields = [
            ("l2", finite.contains(&l2)),
            ("weight_decay", finite.contains(&weight_decay)),
            ("clip_norm", clip_norm > 0.0),
            ("dropout", (0.0..1.0).contains(&dropout)),
        ];
        let wrong = fields.into_iter().find(|(_, is_in_range)| !is_in_range);
        wrong.map_or(Ok(()), |(field, _)| Err(TrainError::Regularization { field }))
    }
}
