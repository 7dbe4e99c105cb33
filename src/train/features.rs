//! The categorical features of a model, and the tables that they are looked up in.

use super::{
    Embedding, Quantity, Regularization, TrainError, Unsupported,
    lookups::{self, LookupList},
};
use crate::{Bags, LookupError, PoolTablesError, Pooling, blob::ModelTable, kernel::Consistent};
use rayon::prelude::*;
use std::{boxed::Box, vec, vec::Vec};

/// Features, each with the position of its table. Several features can have the same table.
pub(super) struct Features {
    pub(super) tables: Vec<Box<dyn Embedding>>,
    pub(super) list: Vec<ModelTable>,
    /// One for each feature.
    buffers: Vec<FeatureBuffers>,
    /// One for each table.
    joined: Vec<Joined>,
}

/// Memory that steps reuse.
#[derive(Default)]
pub(super) struct FeatureBuffers {
    /// The vector of each sample.
    pub(super) pooled: Vec<f32>,
    workspace: Vec<f32>,
    /// The gradient of `pooled`.
    pub(super) gradient: Vec<f32>,
}

/// The bags of all features of one table, one after another. Steps reuse its memory.
#[derive(Default)]
struct Joined {
    lookups: LookupList,
    gradient: Vec<f32>,
}

impl Features {
    pub(super) fn new(
        tables: Vec<Box<dyn Embedding>>,
        list: &[ModelTable],
    ) -> Result<Self, TrainError> {
        let num_tables = tables.len();
        for (feature, &ModelTable { table, pooling }) in list.iter().enumerate() {
            if table >= num_tables {
                return Err(TrainError::NoTable { feature, table, num_tables });
            }
            if pooling == Pooling::Max {
                return Err(TrainError::Unsupported(Unsupported::MaxPooling));
            }
        }
        let (mut buffers, mut joined) = (Vec::new(), Vec::new());
        buffers.resize_with(list.len(), FeatureBuffers::default);
        joined.resize_with(num_tables, Joined::default);
        Ok(Self { tables, list: list.to_vec(), buffers, joined })
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn buffers_mut(&mut self) -> &mut [FeatureBuffers] {
        &mut self.buffers
    }

    /// The vectors of all samples, for each feature.
    pub(super) fn vectors(&self) -> impl Iterator<Item = &[f32]> {
        self.buffers.iter().map(|feature| feature.pooled.as_slice())
    }

    /// Refuses bags that do not suit the tables.
    pub(super) fn check(&self, bags: &[Bags<'_>], samples: usize) -> Result<(), TrainError> {
        Quantity::BagLists.check(bags.len(), self.list.len() as u64)?;
        let mut lookups = vec![0usize; self.tables.len()];
        for (feature, (bags, &ModelTable { table, pooling })) in
            bags.iter().zip(&self.list).enumerate()
        {
            let (found, expected) = (bags.len(), samples);
            let checked = if found == expected {
                lookups::check_bags(&self.tables[table].table(), bags, pooling)
            } else {
                Err(TrainError::Lookup(LookupError::NumBags { found, expected }))
            };
            checked.map_err(|error| match error {
                TrainError::Lookup(error) => {
                    TrainError::Table(PoolTablesError { table: Some(feature), error })
                }
                error => error,
            })?;
            let len = bags.num_indices().max(bags.len());
            lookups[table] = lookups[table].saturating_add(len);
        }
        match lookups.into_iter().find(|&total| u32::try_from(total).is_err()) {
            Some(total) => Err(Quantity::Lookups.above(total as u64, u32::MAX.into())),
            None => Ok(()),
        }
    }

    /// Computes the vectors of all samples, in all `len` elements, that each feature has.
    pub(super) fn pool(&mut self, bags: &[Bags<'_>], len: usize) -> Consistent {
        let Self { tables, list, buffers, .. } = self;
        let features = list.par_iter().zip(bags).zip(buffers);
        features.with_max_len(1).try_for_each(
            |((&ModelTable { table, pooling }, bags), FeatureBuffers { pooled, workspace, .. })| {
                pooled.resize(len, 0.0);
                tables.get(table)?.forward(bags, pooling, pooled, workspace).ok()
            },
        )
    }

    /// Moves all tables. `finish` gets the position of each feature, and completes its gradient.
    pub(super) fn step(
        &mut self,
        bags: &[Bags<'_>],
        rate: f64,
        regularization: &Regularization,
        finish: impl Fn(usize, &mut FeatureBuffers) + Sync,
    ) -> Result<(), TrainError> {
        let Self { tables, list, buffers, joined } = self;
        let mut of_tables: Vec<Vec<_>> = tables.iter().map(|_| Vec::new()).collect();
        for (at, (feature, of_feature)) in list.iter().zip(buffers).enumerate() {
            of_tables[feature.table].push((at, feature.pooling, of_feature));
        }
        let tables = tables.par_iter_mut().zip(of_tables).zip(joined);
        tables.with_max_len(1).try_for_each(|((table, mut features), joined)| {
            for (at, _, of_feature) in &mut features {
                finish(*at, of_feature);
            }
            table.state_mut().clip_norm = regularization.clip_norm;
            match &features[..] {
                [] => Ok(()),
                [(at, pooling, FeatureBuffers { gradient, .. })] => {
                    table.step(&bags[*at], *pooling, gradient, rate)
                }
                features => {
                    let Joined { lookups, gradient } = joined;
                    lookups.clear();
                    gradient.clear();
                    for (at, pooling, of_feature) in features {
                        lookups.append(&bags[*at], *pooling);
                        gradient.extend_from_slice(&of_feature.gradient);
                    }
                    let bags = lookups.bags().ok_or(LookupError::Inconsistent)?;
                    table.step(&bags, Pooling::Sum, gradient, rate)
                }
            }
        })
    }
}
