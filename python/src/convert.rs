//! Conversions, plans and comparisons, with progress and interruption.

use crate::{
    arrays::from_json,
    blob::{self, Blob, Bytes, OpenBlob},
    error::{Error, contain},
    threads,
};
use pyo3::{prelude::*, types::PyDict};
use serde::Serialize;
use std::{
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};
use ttrec_convert::{
    self as library, Budget, Checkpoint, Options, Progress, Spec,
    compare::{Comparison, LayerComparison},
    memory_size,
    plan::Bounds,
};

/// How often Python hears of progress, and signals are looked for.
const TICK: Duration = Duration::from_millis(100);

/// What Python hears of.
enum Event {
    Begin(String, u64),
    Finish,
    Note(String),
}

/// Reports to the thread that called, of steps within steps only the outermost.
struct Reporter {
    events: Mutex<Sender<Event>>,
    depth: AtomicU32,
    done: AtomicU64,
    /// The caller wants the work to end.
    stopping: AtomicBool,
}

impl Reporter {
    fn send(&self, event: Event) {
        // Without a receiver, nobody listens any more.
        let _ = self.events.lock().unwrap_or_else(PoisonError::into_inner).send(event);
    }

    /// Unwinds the work if it has to end: outputs are removed as they are dropped.
    fn stop_if_asked(&self) {
        // A destructor may report its last units while it is unwound.
        if self.stopping.load(Relaxed) && !thread::panicking() {
            resume_unwind(Box::new("interrupted"));
        }
    }
}

impl Progress for Reporter {
    fn begin(&self, what: &str, len: u64) {
        self.stop_if_asked();
        if self.depth.fetch_add(1, Relaxed) == 0 {
            self.send(Event::Begin(what.to_owned(), len));
        }
    }

    fn advance(&self, units: u64) {
        self.stop_if_asked();
        if self.depth.load(Relaxed) == 1 {
            self.done.fetch_add(units, Relaxed);
        }
    }

    fn finish(&self) {
        if self.depth.fetch_sub(1, Relaxed) == 1 {
            self.send(Event::Finish);
        }
    }

    fn note(&self, text: &str) {
        self.send(Event::Note(text.to_owned()));
    }
}

/// Runs `work` on another thread. This one passes its progress to `progress`, which has the methods
/// `begin`, `advance`, `finish` and `note`, and ends the work on Ctrl-C.
fn watched<T: Send>(
    py: Python<'_>,
    progress: &Bound<'_, PyAny>,
    work: impl FnOnce(&Reporter) -> Result<T, Error> + Send,
) -> PyResult<T> {
    let (sender, events) = channel();
    let reporter = Reporter {
        events: Mutex::new(sender.clone()),
        depth: AtomicU32::new(0),
        done: AtomicU64::new(0),
        stopping: AtomicBool::new(false),
    };
    let (reporter, events) = (&reporter, Mutex::new(events));
    // Not rayon's own, which would have no threads in a process that was forked from this one.
    let pool = threads::pool(0)?;
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("ttrec".to_owned())
            .spawn_scoped(scope, move || contain(|| pool.install(|| work(reporter))))?;
        let mut stopped = None;
        loop {
            let is_finished = worker.is_finished();
            let event = py.detach(|| {
                let events = events.lock().unwrap_or_else(PoisonError::into_inner);
                events.recv_timeout(if is_finished { Duration::ZERO } else { TICK })
            });
            let is_silent = matches!(event, Err(RecvTimeoutError::Timeout));
            if is_finished && is_silent {
                break;
            }
            let heard = py.check_signals().and_then(|()| tell(progress, reporter, event.ok()));
            if let (Err(error), None) = (heard, &stopped) {
                reporter.stopping.store(true, Relaxed);
                stopped = Some(error);
            }
        }
        let done = worker.join().unwrap_or_else(|_| Err(Error::Defect("a thread died".into())));
        match stopped {
            Some(error) => Err(error),
            None => Ok(done?),
        }
    })
}

fn tell(progress: &Bound<'_, PyAny>, reporter: &Reporter, event: Option<Event>) -> PyResult<()> {
    let done = reporter.done.swap(0, Relaxed);
    if done > 0 {
        progress.call_method1("advance", (done,))?;
    }
    match event {
        Some(Event::Begin(what, len)) => progress.call_method1("begin", (what, len))?,
        Some(Event::Finish) => progress.call_method0("finish")?,
        Some(Event::Note(text)) => progress.call_method1("note", (text,))?,
        None => return Ok(()),
    };
    Ok(())
}

fn checkpoint(path: &Path) -> Result<Checkpoint, Error> {
    Checkpoint::open(path).map_err(|error| Error::Convert(error.to_string()))
}

fn spec(text: Option<&str>) -> Result<Option<Spec>, Error> {
    Ok(text.map(Spec::from_toml).transpose()?)
}

fn memory(size: &str) -> Result<u64, Error> {
    memory_size(size).map_err(|expected| Error::Value(format!("memory {size:?}: {expected}")))
}

/// Converts the checkpoint at `source` to a blob at `out`, or in memory.
#[pyfunction]
pub(crate) fn convert(
    py: Python<'_>,
    source: PathBuf,
    spec_text: Option<&str>,
    out: Option<PathBuf>,
    frequencies: Option<PathBuf>,
    memory_text: &str,
    progress: &Bound<'_, PyAny>,
) -> PyResult<Blob> {
    let written = watched(py, progress, |reporter| {
        let checkpoint = checkpoint(&source)?;
        let spec = match spec(spec_text)? {
            Some(spec) => spec,
            None => library::detect(&checkpoint, None)?,
        };
        let options = Options {
            memory: memory(memory_text)?,
            frequencies: frequencies.as_deref(),
            resume: None,
        };
        let refused = |error: anyhow::Error| Error::Value(format!("{error:#}"));
        if let Some(out) = &out {
            let inputs: Vec<&Path> = checkpoint.files().chain(options.frequencies).collect();
            ttrec_cli::refuse_inputs(out, &inputs).map_err(refused)?;
        }
        let conversion = library::convert(&checkpoint, &spec, &options, reporter)?;
        let open = match &out {
            Some(out) => {
                ttrec_cli::write_blob(&conversion, out).map_err(|error| {
                    let text = format!("{error:#}");
                    if error.is::<library::Error>() {
                        Error::Convert(text)
                    } else {
                        Error::Output(text)
                    }
                })?;
                blob::map(out)?
            }
            None => OpenBlob::parse(Bytes::Memory(conversion.to_blob()?))?,
        };
        conversion.note_errors(open.blob())?;
        Ok(open)
    })?;
    Ok(Blob::new(written, out))
}

/// Chooses how to store each table: the plan as a dict, its spec and a warning.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "one for each option")]
pub(crate) fn plan<'py>(
    py: Python<'py>,
    source: PathBuf,
    spec_text: Option<&str>,
    budget: Option<&str>,
    max_error: Option<f64>,
    max_nanoseconds: Option<f64>,
    frequencies: Option<PathBuf>,
    memory_text: &str,
    progress: &Bound<'py, PyAny>,
) -> PyResult<(Bound<'py, PyDict>, String, Option<String>)> {
    let is_error = |error: &f64| (0.0..=1.0).contains(error);
    if let Some(error) = max_error.filter(|error| !is_error(error)) {
        return Err(Error::Value(format!("max_error {error}: expected 0 to 1")).into());
    }
    let is_time = |time: &f64| *time > 0.0 && time.is_finite();
    if let Some(time) = max_nanoseconds.filter(|time| !is_time(time)) {
        return Err(Error::Value(format!("max_nanoseconds {time}: expected above 0")).into());
    }
    let (facts, text, warning) = watched(py, progress, |reporter| {
        let checkpoint = checkpoint(&source)?;
        let spec = match spec(spec_text)? {
            Some(spec) => spec,
            None => library::plan::detect(&checkpoint)?,
        };
        let budget = budget.map(str::parse::<Budget>).transpose();
        let bounds = Bounds {
            budget: budget.map_err(|error| Error::Value(format!("budget: {error}")))?,
            max_error,
            max_nanoseconds,
            frequencies: frequencies.as_deref(),
            judge: None,
            memory: memory(memory_text)?,
        };
        let plan = library::plan(&checkpoint, &spec, &bounds, reporter)?;
        let title = source.file_name().unwrap_or_default().to_string_lossy();
        Ok((json(&plan)?, plan.to_toml(&title)?, plan.warning()))
    })?;
    Ok((from_json(py, &facts)?, text, warning))
}

/// How far a blob is from its checkpoint.
#[derive(Serialize)]
struct Report {
    tables: Vec<TableReport>,
    layers: Vec<LayerComparison>,
}

#[derive(Serialize)]
struct TableReport {
    name: String,
    #[serde(flatten)]
    error: Comparison,
}

/// Compares each row of a blob with the checkpoint at `source`.
#[pyfunction]
pub(crate) fn compare<'py>(
    py: Python<'py>,
    blob: &Blob,
    source: PathBuf,
    spec_text: Option<&str>,
    progress: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    let open = blob.opened()?;
    let report = watched(py, progress, |reporter| {
        let blob = open.blob();
        blob.verify_payload()?;
        let (checkpoint, spec) = (checkpoint(&source)?, spec(spec_text)?);
        let tables = blob.tables().map(|table| {
            let origin = library::compare::origin(&checkpoint, spec.as_ref(), &table)?;
            let error = library::compare::compare(&table, &origin, None, reporter)?;
            Ok(TableReport { name: table.name().to_owned(), error })
        });
        let tables = tables.collect::<Result<_, Error>>()?;
        let layers = library::compare::layers(&checkpoint, spec.as_ref(), blob)?;
        json(&Report { tables, layers })
    })?;
    from_json(py, &report)
}

fn json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Defect(error.to_string()))
}
