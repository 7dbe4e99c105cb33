//! Contexts to rank all items for, with the items to find.

use std::ops::Range;

/// Contexts to rank all items for.
pub(crate) struct Queries<'d> {
    queries: Vec<Query>,
    contexts: &'d [u32],
    targets: Vec<u32>,
    known: Vec<u32>,
    /// Whether a target that is known is not left out.
    keeps_targets: bool,
}

/// One context, as ranges of the arrays of [`Queries`].
struct Query {
    context: Range<u32>,
    targets: Range<u32>,
    known: Range<u32>,
}

/// What [`Queries`] has in place of an item for a context that is no item.
const NO_ITEM: u32 = u32::MAX;

/// A user, an item, and the number of the event.
pub(super) type Interaction = [u32; 3];

impl<'d> Queries<'d> {
    /// One query for each user of `found`, whose items are to be found among those that are not the
    /// user's in `known`. `span` is where the context of an event is: a user's events have equal
    /// contexts.
    pub(super) fn of_users(
        contexts: &'d [u32],
        span: impl Fn(u32) -> Range<u32>,
        mut found: Vec<Interaction>,
        mut known: Vec<Interaction>,
    ) -> Self {
        for interactions in [&mut found, &mut known] {
            interactions.sort_unstable();
            interactions.dedup_by_key(|&mut [user, item, _]| [user, item]);
        }
        let mut end = 0;
        let queries = found.chunk_by(|a, b| a[0] == b[0]).map(|of_user| {
            let [user, _, at] = of_user[0];
            let start = end;
            end += of_user.len() as u32;
            let first = known.partition_point(|other| other[0] < user) as u32;
            let last = known.partition_point(|other| other[0] <= user) as u32;
            Query { context: span(at), targets: start..end, known: first..last }
        });
        let queries = queries.collect();
        let [targets, known] =
            [found, known].map(|of| of.iter().map(|&[_, item, _]| item).collect());
        Self { queries, contexts, targets, known, keeps_targets: false }
    }

    /// A query for each of some events: its context, its item, and all that came before the item.
    /// `items` are the contexts as items.
    pub(super) fn of_sessions(
        contexts: &'d [u32],
        events: impl Iterator<Item = (Range<u32>, u32, Range<u32>)>,
        items: impl Iterator<Item = Option<u32>>,
    ) -> Self {
        let (queries, targets) = events
            .zip(0..)
            .map(|((context, target, known), at)| {
                (Query { context, targets: at..at + 1, known }, target)
            })
            .unzip();
        let known = items.map(|item| item.unwrap_or(NO_ITEM)).collect();
        Self { queries, contexts, targets, known, keeps_targets: true }
    }

    pub(crate) fn len(&self) -> usize {
        self.queries.len()
    }

    /// The bag of a query's context.
    pub(crate) fn context(&self, query: usize) -> &[u32] {
        part(self.contexts, &self.queries[query].context)
    }

    /// The items that a query has to find, in ascending order.
    pub(crate) fn targets(&self, query: usize) -> &[u32] {
        part(&self.targets, &self.queries[query].targets)
    }

    /// Appends the items that are left out of a query's ranking, in ascending order, perhaps with
    /// repeats.
    pub(crate) fn add_known(&self, query: usize, out: &mut Vec<u64>) {
        let (start, targets) = (out.len(), self.targets(query));
        let stays =
            |item: &u32| *item != NO_ITEM && !(self.keeps_targets && targets.contains(item));
        let known = part(&self.known, &self.queries[query].known).iter().copied();
        out.extend(known.filter(stays).map(u64::from));
        out[start..].sort_unstable();
    }
}

fn part<'a>(values: &'a [u32], range: &Range<u32>) -> &'a [u32] {
    &values[range.start as usize..range.end as usize]
}
