//! The ranker: a blob's model, from dense features and bags of indices to scores.
//!
//! DLRM (Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation
//! Systems", 2019): a bottom perceptron computes a vector from a sample's dense features, and each
//! table a vector from its bag. The *interaction* is the dot product of each pair of these vectors.
//! A top perceptron computes the score from the bottom's vector and the dot products. A model
//! without dense features has no bottom: with two tables it is a two-tower model. The other
//! interactions ([`Interaction`]) give the top perceptron the product of each vector with itself,
//! too, or the vectors themselves in place of products.
//!
//! Samples are scored in groups. The vectors of a group are adjacent, sample by sample, and each
//! table pools its bags of the whole group straight into them. The perceptrons then take tiles of
//! samples: a tile is small enough for its activations to stay in the nearest caches, and large
//! enough that a layer's weights are read once for many samples.
//!
//! [`Ranker::rank`] scores one user's candidates, and computes once what all candidates share.
//! Vectors come in the order of the tables, and the dot products of the first n vectors with each
//! other come before all others (the order is (1,0), (2,0), (2,1), (3,0), ..). So if the first n
//! vectors are the user's, the first inputs of the top perceptron are the same for all candidates:
//! these vectors are *leading*, and these inputs are *shared*. The first top layer's sums over the
//! shared inputs are computed once, and each candidate's sums continue from them. Every sum keeps
//! its order, so the scores are those of [`Ranker::score`] bit for bit.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

mod error;
mod mlp;

pub use error::{NoModel, ScoreError};

use crate::{
    bag::{Bags, Pooling, check_bags},
    blob::{Activation, Blob, Interaction, Layer, Stack},
    isa::Tier,
    kernel::{Consistent, dot_interaction_from, dot_interaction_workspace_len},
    table::{LookupError, Table},
};
use core::ops::Range;
use mlp::copy;

/// Samples whose vectors are computed together.
const GROUP: usize = 256;
/// Samples that pass through a perceptron together.
const TILE: usize = 64;

/// A view of a blob's model. Cheap to copy, `Send` and `Sync`; scoring allocates nothing.
///
/// ```
/// use ttrec::{Bags, Blob, Workspace};
/// # let blob = Blob::parse(ttrec::include_blob!("../../tests/golden/dlrm.ttr"))?;
/// let ranker = blob.ranker()?;
/// let dense = vec![0.5; 2 * ranker.num_dense()]; // two samples
/// let one_each = Bags::new(&[3u32, 7], &[0, 1, 2])?; // indices 3 and 7
/// let bags = vec![one_each; ranker.num_tables()];
/// let mut scores = [0.0; 2];
/// let mut workspace = Workspace::new();
/// ranker.score(&dense, &bags, &mut scores, workspace.for_ranker(&ranker, 2))?;
/// assert!(scores.iter().all(|score| (0.0..1.0).contains(score)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Ranker<'a> {
    blob: Blob<'a>,
    tier: Tier,
    num_dense: usize,
    /// Layers of the bottom perceptron: none if there are no dense features.
    num_bottom: usize,
    interaction: Interaction,
    embedding_dim: usize,
    /// Outputs of the first top layer.
    first_outputs: usize,
    /// The largest width of a layer's inputs or outputs.
    width: usize,
    /// The least workspace with which every table can pool.
    table_workspace_len: usize,
}

impl<'a> Blob<'a> {
    /// The blob's model.
    ///
    /// # Errors
    /// [`NoModel`] if the blob has tables only.
    pub fn ranker(&self) -> Result<Ranker<'a>, NoModel> {
        let num_bottom = self.layers().take_while(|layer| layer.stack == Stack::Bottom).count();
        let top = self.layer(num_bottom).ok_or(NoModel)?;
        let mut ranker = Ranker {
            blob: *self,
            tier: Tier::best(),
            num_dense: if num_bottom == 0 {
                0
            } else {
                self.layer(0).map_or(0, |layer| layer.inputs)
            },
            num_bottom,
            interaction: self.interaction().ok_or(NoModel)?,
            embedding_dim: self.model_dim(),
            first_outputs: top.outputs,
            width: self.layers().map(|layer| layer.outputs).fold(top.inputs, usize::max),
            table_workspace_len: 0,
        };
        ranker.table_workspace_len =
            ranker.tables().map(|table| table.least_workspace_len()).max().unwrap_or(0);
        Ok(ranker)
    }
}

/// The checked arguments of a batch.
struct Batch<'s, 'b> {
    dense: &'s [f32],
    bags: &'s [Bags<'b>],
    num_samples: usize,
    /// Whether `dense` has the features of one sample, which all samples share.
    one_dense: bool,
}

impl Batch<'_, '_> {
    /// Number of tables before the first one that has a bag for each sample.
    fn num_leading(&self) -> usize {
        self.bags.iter().take_while(|bags| bags.len() == 1).count()
    }
}

/// A caller's workspace, divided.
struct Buffers<'w> {
    /// For the interaction of one sample.
    interaction: &'w mut [f32],
    /// The first top layer's sums over the inputs that all samples share.
    base: &'w mut [f32],
    /// The inputs and the outputs of a layer, which swap from layer to layer.
    layers: [&'w mut [f32]; 2],
    /// The vectors of a group.
    features: &'w mut [f32],
    /// The workspace of the tables.
    tables: &'w mut [f32],
    /// Samples of a group and of a tile.
    group: usize,
    tile: usize,
}

impl<'a> Ranker<'a> {
    /// The same model, computed with the instructions of `tier`.
    #[must_use]
    pub fn with_tier(self, tier: Tier) -> Self {
        Self { tier, ..self }
    }

    /// The instructions in use: by default the best that this CPU has.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Number of dense features of a sample.
    pub fn num_dense(&self) -> usize {
        self.num_dense
    }

    /// Number of tables that the model looks up.
    pub fn num_tables(&self) -> usize {
        self.blob.num_model_tables()
    }

    /// How the vectors of a sample become the inputs of the top perceptron.
    pub fn interaction(&self) -> Interaction {
        self.interaction
    }

    /// Number of elements of a row, the same for every table.
    pub fn embedding_dim(&self) -> usize {
        self.embedding_dim
    }

    /// The tables, in the order in which [`score`](Self::score) takes their bags.
    pub fn tables(&self) -> impl Iterator<Item = Table<'a>> + use<'a> {
        let Self { blob, tier, .. } = *self;
        blob.model_tables()
            .filter_map(move |of| Some(blob.table_at(of.table)?.with_tier(tier)))
    }

    /// How each of these tables pools a bag: by sum or by mean.
    pub fn poolings(&self) -> impl Iterator<Item = Pooling> + use<'a> {
        self.blob.model_tables().map(|of| of.pooling)
    }

    /// The layers: first those of the bottom perceptron, then those of the top one.
    pub fn layers(&self) -> impl Iterator<Item = Layer<'a>> + use<'a> {
        self.blob.layers()
    }

    /// Number of f32 elements of workspace with which `num_samples` samples of one index per bag
    /// are scored fastest. It stops growing at some hundred samples. Where bags have more indices,
    /// [tensor-train tables](Table::workspace_len) can use more.
    ///
    /// [`score`](Self::score), [`logits`](Self::logits) and [`rank`](Self::rank) accept any
    /// workspace of at least `workspace_len(1)` elements, whatever the number of samples. The
    /// length changes the speed, never the scores.
    pub fn workspace_len(&self, num_samples: usize) -> usize {
        let group = num_samples.clamp(1, GROUP);
        // Each score asks for the least length, and to read the tables costs more than a row.
        let tables = match group {
            1 => self.table_workspace_len,
            _ => self.tables().map(|table| table.workspace_len(group)).max().unwrap_or(0),
        };
        self.group_len(group).saturating_add(tables)
    }

    /// Length of a workspace for groups of `group` samples, without the part for the tables.
    fn group_len(&self, group: usize) -> usize {
        let (vectors, scratch) = (
            self.vectors_len(),
            dot_interaction_workspace_len(self.num_vectors(), self.embedding_dim),
        );
        let tile = group.min(TILE).saturating_mul(self.width).saturating_mul(2);
        scratch
            .saturating_add(self.first_outputs)
            .saturating_add(tile)
            .saturating_add(group.saturating_mul(vectors))
    }

    /// Vectors of a sample: that of the bottom perceptron, if there is one, and one of each table.
    fn num_vectors(&self) -> usize {
        self.first_table().saturating_add(self.num_tables())
    }

    /// The position of the first table's vector among those of a sample.
    fn first_table(&self) -> usize {
        usize::from(self.num_bottom > 0)
    }

    fn vectors_len(&self) -> usize {
        self.num_vectors().saturating_mul(self.embedding_dim)
    }

    /// Writes the score of each sample into `out`: a probability if the model ends in a sigmoid, as
    /// DLRMs do.
    ///
    /// `dense` is `out.len() x num_dense`; `bags` holds a list for each of
    /// [`tables`](Self::tables), each with `out.len()` bags, whose rows are summed or averaged
    /// as [`poolings`](Self::poolings) say (summed with the weights if there are any; those of
    /// quotient-remainder tables as [`Table::pool`] pools them).
    /// `workspace` has at least [`workspace_len(1)`](Self::workspace_len) elements; up to
    /// `workspace_len(out.len())` elements make it faster. A sample's score depends neither on its
    /// length nor on the other samples.
    ///
    /// # Errors
    /// [`ScoreError`]: a wrong length, or an index out of range, in which case the error names the
    /// table. On error `out` is left unmodified.
    pub fn score(
        &self,
        dense: &[f32],
        bags: &[Bags<'_>],
        out: &mut [f32],
        workspace: &mut [f32],
    ) -> Result<(), ScoreError> {
        self.run(dense, bags, false, out, workspace)?;
        self.finish(out);
        Ok(())
    }

    /// As [`score`](Self::score), but without the sigmoid at the end: the output of the model's
    /// last linear layer.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub fn logits(
        &self,
        dense: &[f32],
        bags: &[Bags<'_>],
        out: &mut [f32],
        workspace: &mut [f32],
    ) -> Result<(), ScoreError> {
        self.run(dense, bags, false, out, workspace)
    }

    /// Writes the score of each of one user's candidates into `out`, as [`score`](Self::score)
    /// would for samples that repeat the user's part, bit for bit.
    ///
    /// What belongs to the user is given once: `dense` for one sample, and lists of one bag. What
    /// belongs to the candidates is given for each of them: lists of `out.len()` bags, and `dense`
    /// for `out.len()` samples if it depends on the candidate. Ranking is fastest where the user's
    /// tables come first in the model: the first top layer's product with the interactions among
    /// these tables is then computed once.
    ///
    /// ```
    /// use ttrec::{Bags, Blob, Workspace};
    /// # let blob = Blob::parse(ttrec::include_blob!("../../tests/golden/dlrm.ttr"))?;
    /// let ranker = blob.ranker()?;
    /// let user = Bags::new(&[3u32, 7, 11], &[0, 3])?; // one bag
    /// let candidates = Bags::new(&[0u32, 1, 2, 3, 4], &[0, 1, 2, 3, 4, 5])?; // five
    /// let dense = vec![0.5; ranker.num_dense()];
    /// let mut bags = vec![candidates; ranker.num_tables()];
    /// bags[0] = user;
    /// let mut scores = [0.0; 5];
    /// let mut workspace = Workspace::new();
    /// ranker.rank(&dense, &bags, &mut scores, workspace.for_ranker(&ranker, 5))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub fn rank(
        &self,
        dense: &[f32],
        bags: &[Bags<'_>],
        out: &mut [f32],
        workspace: &mut [f32],
    ) -> Result<(), ScoreError> {
        self.run(dense, bags, true, out, workspace)?;
        self.finish(out);
        Ok(())
    }

    /// Checks the arguments and writes the logits. With `sharing`, dense features or bags that are
    /// given for one sample are those of all.
    fn run(
        &self,
        dense: &[f32],
        bags: &[Bags<'_>],
        sharing: bool,
        out: &mut [f32],
        workspace: &mut [f32],
    ) -> Result<(), ScoreError> {
        let num_samples = out.len();
        let one_dense = sharing && dense.len() == self.num_dense;
        let expected = num_samples.saturating_mul(self.num_dense);
        if dense.len() != expected && !one_dense {
            return Err(ScoreError::DenseLen { found: dense.len(), expected });
        }
        if bags.len() != self.num_tables() {
            return Err(ScoreError::BagLists { found: bags.len(), expected: self.num_tables() });
        }
        let expected = self.workspace_len(1);
        if workspace.len() < expected {
            return Err(ScoreError::WorkspaceLen { found: workspace.len(), expected });
        }
        for (position, (of, bags)) in self.blob.model_tables().zip(bags).enumerate() {
            let wrong = |error| ScoreError::Table { table: position, error };
            if bags.len() != num_samples && !(sharing && bags.len() == 1) {
                return Err(wrong(LookupError::NumBags {
                    found: bags.len(),
                    expected: num_samples,
                }));
            }
            check_bags(bags, self.blob.num_embeddings(of.table), of.pooling).map_err(wrong)?;
        }
        // Sharing would not make a single sample faster.
        let one_dense = one_dense && num_samples > 1;
        let batch = Batch { dense, bags, num_samples, one_dense };
        self.write_logits(&batch, out, workspace).ok_or(ScoreError::Inconsistent)
    }

    /// Applies the model's last activation to logits.
    fn finish(&self, logits: &mut [f32]) {
        let last = self.blob.num_layers().checked_sub(1).and_then(|last| self.blob.layer(last));
        if last.is_some_and(|last| last.activation == Activation::Sigmoid) {
            logits.iter_mut().for_each(|x| *x = 1.0 / (1.0 + libm::expf(-*x)));
        }
    }

    fn write_logits(
        &self,
        batch: &Batch<'_, '_>,
        out: &mut [f32],
        workspace: &mut [f32],
    ) -> Consistent {
        let mut buffers = self.divide(batch.num_samples, workspace)?;
        // If the bottom's vector differs from sample to sample, it is the first input, so that no
        // input before it is shared.
        let leading = if batch.one_dense {
            self.first_table().checked_add(batch.num_leading())?
        } else {
            0
        };
        let shared_inputs = if leading == 0 {
            0
        } else {
            self.interaction.top_inputs(leading, self.embedding_dim, self.num_bottom > 0)
        };
        let leading = if shared_inputs == 0 { 0 } else { leading };
        let group = buffers.group;
        for (at, out) in out.chunks_mut(group.max(1)).enumerate() {
            let first = at.checked_mul(group)?;
            let samples = first..first.checked_add(out.len())?;
            self.write_vectors(batch, samples, &mut buffers)?;
            if first == 0 && leading > 0 {
                self.write_base(leading, shared_inputs, &mut buffers)?;
            }
            for (at, out) in out.chunks_mut(buffers.tile.max(1)).enumerate() {
                let first = at.checked_mul(buffers.tile)?;
                self.write_top(
                    first..first.checked_add(out.len())?,
                    leading,
                    shared_inputs,
                    out,
                    &mut buffers,
                )?;
            }
        }
        Some(())
    }

    fn divide<'w>(&self, num_samples: usize, workspace: &'w mut [f32]) -> Option<Buffers<'w>> {
        let for_groups = workspace.len().checked_sub(self.table_workspace_len)?;
        let most = num_samples.clamp(1, GROUP);
        let group = if self.group_len(most) <= for_groups {
            most
        } else {
            // As many samples as there is room for, up to a tile.
            let (one, two) = (self.group_len(1), self.group_len(2));
            let more = for_groups.checked_sub(one)?.checked_div(two.checked_sub(one)?)?;
            more.checked_add(1)?.min(TILE).min(most)
        };
        let tile = group.min(TILE);
        let layer_len = tile.checked_mul(self.width)?;
        let interaction = dot_interaction_workspace_len(self.num_vectors(), self.embedding_dim);
        let (interaction, rest) = workspace.split_at_mut_checked(interaction)?;
        let (base, rest) = rest.split_at_mut_checked(self.first_outputs)?;
        let (even, rest) = rest.split_at_mut_checked(layer_len)?;
        let (odd, rest) = rest.split_at_mut_checked(layer_len)?;
        let (features, tables) =
            rest.split_at_mut_checked(group.checked_mul(self.vectors_len())?)?;
        Some(Buffers { interaction, base, layers: [even, odd], features, tables, group, tile })
    }

    /// Writes the vectors of `samples`. Vectors that all samples share are written with the first
    /// group, to every sample's place, and are left there for the next groups.
    fn write_vectors(
        &self,
        batch: &Batch<'_, '_>,
        samples: Range<usize>,
        buffers: &mut Buffers<'_>,
    ) -> Consistent {
        let (stride, dim) = (self.vectors_len(), self.embedding_dim);
        let is_first = samples.start == 0;
        if self.num_bottom == 0 {
            // A model of tables only.
        } else if !batch.one_dense {
            self.write_dense(batch.dense, samples.clone(), buffers)?;
        } else if is_first {
            self.write_dense(batch.dense, 0..1, buffers)?;
            repeat(buffers.features, stride, 0, dim)?;
        }
        let tables = self.tables().zip(self.poolings());
        for (position, ((table, pooling), bags)) in tables.zip(batch.bags).enumerate() {
            let first = position.checked_add(self.first_table())?.checked_mul(dim)?;
            let is_shared = batch.num_samples > 1 && bags.len() == 1;
            if is_shared && !is_first {
                continue;
            }
            let bags = if is_shared { *bags } else { bags.slice(samples.clone())? };
            let (vectors, workspace) = (&mut *buffers.features, &mut *buffers.tables);
            table.pool_strided(&bags, pooling, vectors, stride, first, workspace)?;
            if is_shared {
                repeat(vectors, stride, first, dim)?;
            }
        }
        Some(())
    }

    /// Writes the bottom perceptron's vector of each of `samples`.
    fn write_dense(
        &self,
        dense: &[f32],
        samples: Range<usize>,
        buffers: &mut Buffers<'_>,
    ) -> Consistent {
        let dense = dense.get(
            samples.start.checked_mul(self.num_dense)?..samples.end.checked_mul(self.num_dense)?,
        )?;
        let (stride, dim) = (self.vectors_len(), self.embedding_dim);
        let mut rest = &mut *buffers.features;
        for dense in dense.chunks(buffers.tile.checked_mul(self.num_dense)?.max(1)) {
            let m = dense.len().checked_div(self.num_dense)?;
            let (tile, after) = rest.split_at_mut_checked(m.checked_mul(stride)?)?;
            let mut vectors =
                mlp::run(self.tier, &self.blob, 0..self.num_bottom, m, dense, &mut buffers.layers)?;
            for to in tile.chunks_exact_mut(stride.max(1)) {
                let (vector, others) = vectors.split_at_checked(dim)?;
                copy(vector, to)?;
                vectors = others;
            }
            rest = after;
        }
        Some(())
    }

    /// Writes the first top layer's sums over the shared inputs, from the `leading` vectors of the
    /// first sample.
    fn write_base(&self, leading: usize, inputs: usize, buffers: &mut Buffers<'_>) -> Consistent {
        let Buffers { interaction, base, layers: [x, _], features, .. } = buffers;
        let vectors = features.get(..leading.checked_mul(self.embedding_dim)?)?;
        let x = x.get_mut(..inputs)?;
        self.interact(vectors, leading, 0, x, interaction)?;
        mlp::begin(self.tier, &self.blob.layer(self.num_bottom)?, x, base)
    }

    /// Writes the inputs that `num_vectors` vectors of a sample give the top perceptron, without
    /// those of the `leading` vectors alone.
    fn interact(
        &self,
        vectors: &[f32],
        num_vectors: usize,
        leading: usize,
        out: &mut [f32],
        workspace: &mut [f32],
    ) -> Consistent {
        let itself = match self.interaction {
            Interaction::Dot => false,
            Interaction::DotItself => true,
            Interaction::Cat => {
                return copy(vectors.get(leading.checked_mul(self.embedding_dim)?..)?, out);
            }
        };
        let direct = if leading == 0 && self.num_bottom > 0 {
            self.embedding_dim
        } else {
            0
        };
        let (vector, pairs) = out.split_at_mut_checked(direct)?;
        copy(vectors.get(..direct)?, vector)?;
        dot_interaction_from(self.tier, vectors, num_vectors, leading, itself, pairs, workspace)
    }

    /// Writes the logits of `samples` of the group. The `leading` vectors give the first
    /// `shared_inputs` inputs of the top perceptron, which are in `base` already.
    fn write_top(
        &self,
        samples: Range<usize>,
        leading: usize,
        shared_inputs: usize,
        out: &mut [f32],
        buffers: &mut Buffers<'_>,
    ) -> Consistent {
        let Buffers { interaction, base, layers, features, .. } = buffers;
        let [inputs, outputs] = layers;
        let (m, stride) = (samples.len(), self.vectors_len());
        let first = self.blob.layer(self.num_bottom)?;
        let width = first.inputs.checked_sub(shared_inputs)?;
        let features =
            features.get(samples.start.checked_mul(stride)?..samples.end.checked_mul(stride)?)?;
        let mut rest = inputs.get_mut(..m.checked_mul(width)?)?;
        for vectors in features.chunks_exact(stride.max(1)) {
            let (x, after) = rest.split_at_mut_checked(width)?;
            self.interact(vectors, self.num_vectors(), leading, x, interaction)?;
            rest = after;
        }
        let x = inputs.get(..m.checked_mul(width)?)?;
        let rest = self.num_bottom.checked_add(1)?..self.blob.num_layers();
        let y = outputs.get_mut(..m.checked_mul(first.outputs)?)?;
        if shared_inputs == 0 {
            mlp::layer(self.tier, &first, m, x, y)?;
        } else {
            mlp::resume(self.tier, &first, shared_inputs, base, m, x, y)?;
        }
        let logits = mlp::run_on(self.tier, &self.blob, rest, m, first.outputs, [outputs, inputs])?;
        copy(logits.get(..m)?, out)
    }
}

/// Copies the `len` elements from `first` on of the first sample, `stride` elements long, to the
/// same place in every other sample.
fn repeat(features: &mut [f32], stride: usize, first: usize, len: usize) -> Consistent {
    let (from, to) = features.split_at_mut_checked(stride)?;
    let from = from.get(first..)?.get(..len)?;
    for to in to.chunks_exact_mut(stride.max(1)) {
        copy(from, to.get_mut(first..)?)?;
    }
    Some(())
}
