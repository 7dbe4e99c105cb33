//! Implicit feedback with sampled negatives: each interaction is an example labelled 1, followed by
//! examples with randomly drawn items, labelled 0.
//!
//! The *context* of an item is a user, the other items of its user, or the items before it in a
//! session.

use super::{
    Batch, Dataset, FIXED, Feature, Pass, Queries, Split, Vocabulary, check_share, locate,
    order::{self, Order},
    vocabulary::Categories,
};
use crate::random::{below, random, uniform};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
};
use ttrec::Pooling;
use ttrec_convert::{Checkpoint, checkpoint::Tensor};

/// Pairs of users and items, in an npz file of `train_user`, `train_item`, `test_user`,
/// `test_item`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Interactions {
    pub(super) path: PathBuf,
    /// Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    negatives: Option<u32>,
    #[serde(default)]
    pub(super) negative_sampling: NegativeSampling,
    #[serde(default)]
    valid_fraction: f64,
    #[serde(default)]
    order: Order,
    /// Whether examples have one dense feature, the constant 1: the products of its vector with the
    /// others are biases of the rows.
    #[serde(default)]
    constant: bool,
    /// The most other items of its user that an item is predicted from, instead of from the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    history: Option<u32>,
    /// Whether contexts and items share a table. Needs a `history`.
    #[serde(default)]
    shared_table: bool,
}

/// Sessions, in an npz file: the items of session s are `items[offsets[s]..offsets[s + 1]]`; each
/// item but the first is predicted from those before it. The test predicts `test_target[s]` from
/// all of `test_items[test_offsets[s]..test_offsets[s + 1]]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sessions {
    pub(super) path: PathBuf,
    /// Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    negatives: Option<u32>,
    #[serde(default)]
    pub(super) negative_sampling: NegativeSampling,
    #[serde(default)]
    valid_fraction: f64,
    #[serde(default)]
    order: Order,
    /// Whether examples have one dense feature, the constant 1: the products of its vector with the
    /// others are biases of the rows.
    #[serde(default)]
    constant: bool,
    /// The number of preceding items in a context.
    #[serde(default = "default_history")]
    history: u32,
    /// Whether contexts and items share a table.
    #[serde(default)]
    shared_table: bool,
}

/// How the negative items of the training split are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NegativeSampling {
    /// All items alike.
    #[default]
    Uniform,
    /// Each item as often as it occurs in the training split.
    Popularity,
    /// Not at all: those of an example are the items of all other examples of its step.
    InBatch,
}

fn default_history() -> u32 {
    20
}

/// How examples are drawn.
struct Sampling {
    negatives: Option<u32>,
    negative_sampling: NegativeSampling,
    valid_fraction: f64,
    order: Order,
    constant: bool,
    kind: ContextKind,
    shared_table: bool,
}

/// What the context of an item is.
#[derive(Clone, Copy, PartialEq)]
enum ContextKind {
    User,
    /// Other items of its user.
    History,
    /// The items before it in a session.
    Session,
}

/// Events, in memory.
pub(crate) struct Sampled {
    path: PathBuf,
    /// The context, and the item.
    features: [Feature; 2],
    vocabulary: Vocabulary,
    negatives: u32,
    negative_sampling: NegativeSampling,
    /// The logarithm of each item's share of the training split; empty if items are drawn alike.
    log_frequencies: Vec<f32>,
    constant: bool,
    has_valid: bool,
    train: Events,
    /// The events of `train` in the training split, and in the validation split.
    parts: [Vec<u32>; 2],
    test: Events,
    /// The item that each context is, if it is one; `None` if each user is a query.
    item_of: Option<Vec<Option<u32>>>,
}

/// Event e is the interaction of item `items[e]` with its context: the last `history` elements of
/// `contexts[spans[e]]`, which is all that the item may be predicted from.
struct Events {
    items: Vec<u32>,
    /// The user of each event, by the ids of the file; empty for sessions.
    users: Vec<u32>,
    contexts: Vec<u32>,
    spans: Vec<Range<u32>>,
    history: u32,
}

impl Events {
    /// Where the context of an event is.
    fn span(&self, event: u32) -> Range<u32> {
        let Range { start, end } = self.spans[event as usize];
        start.max(end.saturating_sub(self.history))..end
    }

    fn context(&self, event: u32) -> &[u32] {
        let Range { start, end } = self.span(event);
        &self.contexts[start as usize..end as usize]
    }
}

impl Interactions {
    pub(super) fn open(&self, directory: &Path, vocabulary: Option<Vocabulary>) -> Result<Sampled> {
        let path = locate(directory, &self.path);
        let file = Checkpoint::open(&path)?;
        let read = |part: &str| -> Result<Pairs> {
            let [users, items] = [format!("{part}_user"), format!("{part}_item")];
            let (users, items) = (indices(&file, &users)?, indices(&file, &items)?);
            let (found, len) = (users.len(), items.len());
            ensure!(
                found == len,
                "{}: `{part}_user` has {found} elements, but `{part}_item` has {len}",
                path.display()
            );
            Ok(Pairs { users, items })
        };
        let pairs = [read("train")?, read("test")?];
        ensure!(
            !self.shared_table || self.history.is_some(),
            "`shared_table` is set, but the context of an item is its user: set `history`"
        );
        let (events, kind) = match self.history {
            None => (pairs.map(Pairs::by_user), ContextKind::User),
            Some(0) => bail!("`history` is 0: expected at least 1"),
            Some(history) => {
                // A history has each item twice.
                let most = u32::MAX as usize / 2;
                ensure!(
                    pairs.iter().all(|pairs| pairs.items.len() < most),
                    "{}: more than 2^31 events are too many for a `history`",
                    path.display()
                );
                let events = Pairs::by_history(pairs, history, self.valid_fraction);
                (events, ContextKind::History)
            }
        };
        let sampling = Sampling {
            negatives: self.negatives,
            negative_sampling: self.negative_sampling,
            valid_fraction: self.valid_fraction,
            order: self.order,
            constant: self.constant,
            kind,
            shared_table: self.shared_table,
        };
        Sampled::new(&path, events, vocabulary, &sampling)
    }
}

/// Users and the items that they interacted with.
struct Pairs {
    users: Vec<u32>,
    items: Vec<u32>,
}

impl Pairs {
    /// The context of an item is its user.
    fn by_user(self) -> Events {
        let Self { users, items } = self;
        let spans = (0..items.len() as u32).map(|at| at..at + 1).collect();
        Events { items, contexts: users.clone(), users, spans, history: 1 }
    }

    /// The context of an item is a bag of items of its user: of the training split for an item of
    /// this split or of the validation split, of both for an item of the test split. An item of the
    /// training split is not in its own context.
    ///
    /// `contexts` has the items of each user's training split, and then the same once more. So the
    /// context of item k of n is one range, too: the n - 1 items after it.
    fn by_history([train, test]: [Self; 2], history: u32, valid_fraction: f64) -> [Events; 2] {
        let Self { users, items } = train;
        let is_valid = |event: &u32| is_held_out(*event, valid_fraction);
        let pair = |event: &u32| (users[*event as usize], items[*event as usize]);
        let mut order: Vec<u32> = (0..items.len() as u32).collect();
        // A short history has the last of these items: their order must not mean anything.
        order.sort_by_cached_key(|event| {
            let (user, item) = pair(event);
            (user, random(user.into(), item.into()), item)
        });
        let (mut contexts, mut known) = (Vec::new(), Vec::new());
        let (mut spans, mut known_of) = (vec![0..0; items.len()], HashMap::new());
        for of_user in order.chunk_by(|a, b| pair(a).0 == pair(b).0) {
            let (user, _) = pair(&of_user[0]);
            let (first, first_known) = (contexts.len() as u32, known.len() as u32);
            for of_item in of_user.chunk_by(|a, b| pair(a) == pair(b)) {
                let (_, item) = pair(&of_item[0]);
                known.push(item);
                let at = contexts.len() as u32;
                if !of_item.iter().all(is_valid) {
                    contexts.push(item);
                }
                of_item.iter().for_each(|&event| spans[event as usize] = at..at);
            }
            let end = contexts.len() as u32;
            contexts.extend_from_within(first as usize..);
            for event in of_user {
                let span = &mut spans[*event as usize];
                *span = if is_valid(event) {
                    first..end
                } else {
                    span.start + 1..span.start + (end - first)
                };
            }
            known_of.insert(user, first_known..known.len() as u32);
        }
        let of_test = test.users.iter().map(|user| known_of.get(user).cloned().unwrap_or(0..0));
        let of_test = Events {
            spans: of_test.collect(),
            items: test.items,
            users: test.users,
            contexts: known,
            history,
        };
        [Events { items, users, contexts, spans, history }, of_test]
    }
}

/// Whether an event of the file belongs to the validation split.
fn is_held_out(event: u32, valid_fraction: f64) -> bool {
    uniform(FIXED, event.into()) < valid_fraction
}

impl Sessions {
    pub(super) fn open(&self, directory: &Path, vocabulary: Option<Vocabulary>) -> Result<Sampled> {
        let path = locate(directory, &self.path);
        let file = Checkpoint::open(&path)?;
        ensure!(self.history > 0, "`history` is 0: expected at least 1");
        let ranges = |offsets: &str, items: &[u32]| -> Result<Vec<Range<u32>>> {
            let starts = indices(&file, offsets)?;
            let rise = starts.first() == Some(&0) && starts.is_sorted();
            let all = rise && starts.last().is_some_and(|&end| end as usize == items.len());
            ensure!(
                all,
                "{}: array {offsets:?} must ascend from 0 to {}, the number of items",
                path.display(),
                items.len()
            );
            Ok(starts.windows(2).map(|pair| pair[0]..pair[1]).collect())
        };
        let contexts = indices(&file, "items")?;
        let sessions = ranges("offsets", &contexts)?;
        let (mut items, mut spans) = (Vec::new(), Vec::new());
        for (session, at) in sessions.into_iter().flat_map(|session| {
            let start = session.start;
            session.skip(1).map(move |at| (start, at))
        }) {
            items.push(contexts[at as usize]);
            spans.push(session..at);
        }
        let history = self.history;
        let train = Events { items, users: Vec::new(), contexts, spans, history };

        let (contexts, items) = (indices(&file, "test_items")?, indices(&file, "test_target")?);
        let spans = ranges("test_offsets", &contexts)?;
        let (found, expected) = (items.len(), spans.len());
        ensure!(
            found == expected,
            "{}: `test_target` has {found} elements: expected {expected}, one for each session",
            path.display()
        );
        let test = Events { items, users: Vec::new(), contexts, spans, history };
        let sampling = Sampling {
            negatives: self.negatives,
            negative_sampling: self.negative_sampling,
            valid_fraction: self.valid_fraction,
            order: self.order,
            constant: self.constant,
            kind: ContextKind::Session,
            shared_table: self.shared_table,
        };
        Sampled::new(&path, [train, test], vocabulary, &sampling)
    }
}

/// An array of indices.
fn indices(file: &Checkpoint, name: &str) -> Result<Vec<u32>> {
    let path = file.path();
    let array: &Tensor = file
        .tensor(name)
        .with_context(|| format!("{}: array {name:?} is missing", path.display()))?;
    let mut values = vec![0; usize::try_from(array.vector_len()?)?];
    array.read_i64(0, &mut values)?;
    let place = |at: usize, value: i64| {
        format!("{}: {name}[{at}] is {value}: expected 0 to {}", path.display(), u32::MAX)
    };
    let index =
        |(at, &value): (usize, &i64)| u32::try_from(value).ok().with_context(|| place(at, value));
    values.iter().enumerate().map(index).collect()
}

/// Replaces each id by its place among the ids that occur, which are returned in ascending order:
/// ids may have gaps, and only items that exist may be drawn.
fn compact_ids(parts: &mut [&mut [u32]]) -> Vec<u32> {
    let mut ids: Vec<u32> = parts.iter().flat_map(|part| part.iter().copied()).collect();
    ids.sort_unstable();
    ids.dedup();
    for id in parts.iter_mut().flat_map(|part| part.iter_mut()) {
        *id = ids.partition_point(|other| other < id) as u32;
    }
    ids
}

impl Sampled {
    fn new(
        path: &Path,
        [mut train, mut test]: [Events; 2],
        vocabulary: Option<Vocabulary>,
        sampling: &Sampling,
    ) -> Result<Self> {
        let &Sampling {
            negatives,
            negative_sampling,
            valid_fraction,
            order,
            constant,
            kind,
            shared_table,
        } = sampling;
        check_share("valid_fraction", valid_fraction)?;
        ensure!(
            negatives.is_none() || negative_sampling != NegativeSampling::InBatch,
            "`negatives` is set, but with `negative_sampling = \"in-batch\"` none are drawn: \
             remove one of them"
        );
        let negatives = negatives.unwrap_or(1);
        ensure!(
            negatives > 0,
            "`negatives` is 0: expected at least 1, because every example in the file is labelled 1"
        );
        ensure!(
            train.contexts.len().max(test.contexts.len()) < u32::MAX as usize,
            "{}: more than 2^32 events",
            path.display()
        );
        let (valid, training): (Vec<u32>, Vec<u32>) =
            (0..train.items.len() as u32).partition(|&event| is_held_out(event, valid_fraction));

        // The ids of each table. Contexts have the first table, and items the last one.
        let contexts = [&mut train.contexts[..], &mut test.contexts];
        let items = [&mut train.items[..], &mut test.items];
        let (names, ids) = if shared_table {
            (
                vec!["item"],
                vec![compact_ids(&mut contexts.into_iter().chain(items).collect::<Vec<_>>())],
            )
        } else {
            let context = if kind == ContextKind::User { "user" } else { "history" };
            (
                vec![context, "item"],
                [contexts, items].map(|mut parts| compact_ids(&mut parts)).to_vec(),
            )
        };
        let last = ids.len() - 1;
        let mut counts: Vec<Vec<u64>> = ids.iter().map(|ids| vec![0; ids.len()]).collect();
        let mut count = |table: usize, values: &[u32]| {
            values.iter().for_each(|&value| counts[table][value as usize] += 1);
        };
        count(last, &train.items);
        if kind == ContextKind::History {
            // What the training split looks up.
            training.iter().for_each(|&event| count(0, train.context(event)));
        } else {
            count(0, &train.contexts);
        }
        // A trained model's vocabulary has its own order.
        let order = if vocabulary.is_some() { Order::Given } else { order };
        let orders: Vec<Vec<u32>> = if order == Order::CoOccurrence {
            // The pairs of the training split.
            let pairs = training.iter().flat_map(|&event| {
                let item = train.items[event as usize];
                train.context(event).iter().map(move |&context| [context, item])
            });
            let pairs: Vec<_> = pairs.collect();
            let mut orders =
                order::by_co_occurrence(&pairs, [&counts[0][..], &counts[last]]).to_vec();
            // A shared table has the order of items.
            orders.drain(..orders.len() - ids.len());
            orders
        } else {
            let key = |table: usize, value: u32| match order {
                Order::Frequency => u64::MAX - counts[table][value as usize],
                Order::Random => random(FIXED, ids[table][value as usize].into()),
                Order::Given | Order::CoOccurrence => value.into(),
            };
            let sorted = |table: usize| {
                let mut values: Vec<u32> = (0..counts[table].len() as u32).collect();
                values.sort_by_key(|&value| key(table, value));
                values
            };
            (0..ids.len()).map(sorted).collect()
        };
        // The categories, the number of each id, and the number of each id of the file.
        let categories = |table: usize| -> Result<(Categories, HashMap<u32, u32>, Vec<u32>)> {
            let (name, ids) = (names[table], &ids[table]);
            let categories = match &vocabulary {
                // A trained model keeps its vocabulary.
                Some(kept) => {
                    let found = kept.features().get(table).filter(|found| found.name() == name);
                    found.cloned().with_context(|| {
                        format!("vocabulary: table {table}: expected one of the name {name:?}")
                    })?
                }
                None => {
                    let (ids, counts): (Vec<u32>, Vec<u64>) = orders[table]
                        .iter()
                        .map(|&value| (ids[value as usize], counts[table][value as usize]))
                        .unzip();
                    Categories::integers(name.to_owned(), &ids, counts)
                }
            };
            let number_of = categories.values().iter().zip(0..).map(|(id, number)| {
                let id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
                let id = id.with_context(|| {
                    format!("vocabulary: number {number} of {name:?}: expected an id")
                })?;
                Ok((id, number))
            });
            let number_of = number_of.collect::<Result<HashMap<u32, u32>>>()?;
            let numbers = ids.iter().map(|id| {
                number_of.get(id).copied().with_context(|| {
                    format!(
                        "{}: {name} {id} is not in the vocabulary of the model: remove its rows, \
                         or train a model with them",
                        path.display()
                    )
                })
            });
            let numbers = numbers.collect::<Result<_>>()?;
            Ok((categories, number_of, numbers))
        };

        let tables = (0..ids.len()).map(categories).collect::<Result<Vec<_>>>()?;
        let (contexts, contexts_by_id, numbers) = &tables[0];
        for value in train.contexts.iter_mut().chain(&mut test.contexts) {
            *value = numbers[*value as usize];
        }
        let (items, items_by_id, numbers) = &tables[last];
        for value in train.items.iter_mut().chain(&mut test.items) {
            *value = numbers[*value as usize];
        }
        let feature = |table: usize, categories: &Categories| Feature {
            table,
            name: categories.name().to_owned(),
            num_embeddings: categories.len(),
            pooling: Pooling::Mean,
        };
        let features = [feature(0, contexts), feature(last, items)];
        let item_of = (kind == ContextKind::Session).then(|| {
            let mut item_of = vec![None; contexts.len() as usize];
            for (id, number) in contexts_by_id {
                item_of[*number as usize] = items_by_id.get(id).copied();
            }
            item_of
        });
        let log_frequencies = if negative_sampling == NegativeSampling::Uniform {
            Vec::new()
        } else {
            let mut counts = vec![0u32; items.len() as usize];
            training.iter().for_each(|&at| counts[train.items[at as usize] as usize] += 1);
            let share = |&count: &u32| f64::from(count) / training.len() as f64;
            counts.iter().map(|count| share(count).ln() as f32).collect()
        };
        Ok(Self {
            path: path.to_owned(),
            features,
            vocabulary: Vocabulary::new(tables.into_iter().map(|(table, ..)| table).collect()),
            negatives,
            negative_sampling,
            log_frequencies,
            constant,
            has_valid: valid_fraction > 0.0,
            train,
            parts: [training, valid],
            test,
            item_of,
        })
    }

    fn events(&self, split: Split) -> (&Events, Option<&[u32]>) {
        match split {
            Split::Train => (&self.train, Some(&self.parts[0])),
            Split::Valid => (&self.train, Some(&self.parts[1])),
            Split::Test => (&self.test, None),
        }
    }

    /// The examples of each event: its item, and those that are drawn.
    fn group_of(&self, split: Split) -> u64 {
        match self.negative_sampling {
            NegativeSampling::InBatch if split == Split::Train => 1,
            _ => u64::from(self.negatives) + 1,
        }
    }

    /// The events of a split, in the order of the file.
    fn chosen(&self, split: Split) -> Vec<u32> {
        let (events, chosen) = self.events(split);
        chosen.map_or_else(|| (0..events.items.len() as u32).collect(), <[u32]>::to_vec)
    }
}

impl Dataset for Sampled {
    fn dense_dim(&self) -> usize {
        usize::from(self.constant)
    }

    fn features(&self) -> &[Feature] {
        &self.features
    }

    fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    fn num_examples(&self, split: Split) -> Option<u64> {
        let (events, chosen) = self.events(split);
        let count = chosen.map_or(events.items.len(), <[u32]>::len);
        Some(count as u64 * self.group_of(split))
    }

    fn group(&self) -> Option<usize> {
        Some(self.group_of(Split::Train) as usize)
    }

    fn has(&self, split: Split) -> bool {
        match split {
            Split::Train => true,
            Split::Valid => self.has_valid,
            Split::Test => !self.test.items.is_empty(),
        }
    }

    fn queries(&self, split: Split) -> Option<Queries<'_>> {
        let ((events, _), chosen) = (self.events(split), self.chosen(split));
        if split == Split::Train {
            return None;
        }
        if let Some(item_of) = &self.item_of {
            let query = |event: u32| {
                let at = event as usize;
                (events.span(event), events.items[at], events.spans[at].clone())
            };
            let items = events.contexts.iter().map(|&context| item_of[context as usize]);
            let queries = chosen.into_iter().map(query);
            return Some(Queries::of_sessions(&events.contexts, queries, items));
        }
        let interactions = |events: &Events, chosen: Vec<u32>| {
            let interaction = |at: u32| [events.users[at as usize], events.items[at as usize], at];
            chosen.into_iter().map(interaction).collect()
        };
        let known = match split {
            // All interactions of the file: the validation split is known by then.
            Split::Test => (0..self.train.items.len() as u32).collect(),
            _ => self.chosen(Split::Train),
        };
        let (found, known) = (interactions(events, chosen), interactions(&self.train, known));
        Some(Queries::of_users(&events.contexts, |event| events.span(event), found, known))
    }

    fn pass(&self, split: Split, seed: u64) -> Result<Box<dyn Pass + '_>> {
        ensure!(
            self.num_examples(split) != Some(0),
            "{}: the {} split is empty",
            self.path.display(),
            split.name()
        );
        let (events, _) = self.events(split);
        let mut order = self.chosen(split);
        let seed = if split == Split::Train { seed } else { FIXED };
        if split == Split::Train {
            // Fisher and Yates.
            for last in (1..order.len()).rev() {
                order.swap(last, below(last as u32 + 1, seed, last as u64) as usize);
            }
        }
        let (group, seed) = (self.group_of(split), random(seed, u64::MAX));
        Ok(Box::new(Drawn { dataset: self, events, split, group, order, seed, at: 0 }))
    }
}

/// A pass; example `e` is of event `order[e / group]`.
struct Drawn<'d> {
    dataset: &'d Sampled,
    events: &'d Events,
    split: Split,
    group: u64,
    order: Vec<u32>,
    seed: u64,
    at: u64,
}

impl Drawn<'_> {
    /// The negative item of the present example.
    fn draw(&self) -> u32 {
        let Sampled { features, train, parts: [training, _], negative_sampling, .. } = self.dataset;
        let popular =
            *negative_sampling == NegativeSampling::Popularity && self.split == Split::Train;
        if popular {
            let event = training[below(training.len() as u32, self.seed, self.at) as usize];
            train.items[event as usize]
        } else {
            below(features[1].num_embeddings, self.seed, self.at)
        }
    }
}

impl Pass for Drawn<'_> {
    fn next(&mut self, count: usize, batch: &mut Batch) -> Result<()> {
        let Sampled { features, log_frequencies: known, constant, .. } = self.dataset;
        batch.clear(features.len());
        let Batch { features: bags, labels, dense, log_frequencies, .. } = batch;
        let [contexts, items] = &mut bags[..] else { return Ok(()) };
        for _ in 0..count {
            let (position, drawn) = (self.at / self.group, self.at % self.group);
            let Some(event) =
                usize::try_from(position).ok().and_then(|position| self.order.get(position))
            else {
                break;
            };
            contexts.indices.extend_from_slice(self.events.context(*event));
            contexts.end_bag();
            let positive = self.events.items[*event as usize];
            let item = if drawn > 0 { self.draw() } else { positive };
            items.indices.push(item);
            items.end_bag();
            labels.push(if drawn > 0 { 0.0 } else { 1.0 });
            if self.split == Split::Train {
                // A positive item that is drawn is no negative one.
                log_frequencies.push(if drawn > 0 && item == positive {
                    f32::INFINITY
                } else {
                    known.get(item as usize).copied().unwrap_or(0.0)
                });
            }
            if *constant {
                dense.push(1.0);
            }
            self.at += 1;
        }
        Ok(())
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        self.at = self.at.saturating_add(count);
        Ok(())
    }
}
