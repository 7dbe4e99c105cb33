//! Plots as inline SVG, without a plotting library: CSS classes take colours and fonts from the
//! page, so that plots follow the reader's theme and text keeps its size on a phone.

use super::numbers;

use maud::{Markup, Render, html};
use std::ops::Range;
use ttrec_convert::compare::HistogramBar;

/// Sizes in units of the picture, about pixels on a phone.
const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 210.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = 36.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 14.0;
/// Width of a character, on average, and height of a line.
const CHARACTER: f64 = 5.6;
const LINE: f64 = 11.0;

/// The report's style for stand-alone pictures, and rules that the page does not need.
const STYLE: &str = concat!(
    include_str!("style.css"),
    "
svg { max-width: none; }
.page { fill: var(--card); }
g rect { fill: currentColor; }
g.other { color: var(--own); } g.before { color: var(--muted); } g.last { color: #8a63d2; }
"
);

/// A number of the picture, to a hundredth.
struct N(f64);

impl Render for N {
    fn render_to(&self, to: &mut String) {
        let rounded = (self.0 * 100.0).round() / 100.0;
        to.push_str(&rounded.to_string());
    }
}

/// Maps values to coordinates.
#[derive(Clone)]
struct Scale {
    values: Range<f64>,
    places: Range<f64>,
    logarithmic: bool,
}

impl Scale {
    fn linear(values: Range<f64>, places: Range<f64>) -> Self {
        Self { values, places, logarithmic: false }
    }

    fn logarithmic(values: Range<f64>, places: Range<f64>) -> Self {
        Self { values, places, logarithmic: true }
    }

    /// The coordinate of a value, clamped to the ends of the scale.
    fn at(&self, value: f64) -> f64 {
        let position = |x: f64| {
            if self.logarithmic {
                x.max(f64::MIN_POSITIVE).ln()
            } else {
                x
            }
        };
        let (start, end) = (position(self.values.start), position(self.values.end));
        let share = if end > start {
            ((position(value) - start) / (end - start)).clamp(0.0, 1.0)
        } else {
            0.5
        };
        self.places.start + share * (self.places.end - self.places.start)
    }

    /// About `count` round values within the scale.
    fn ticks(&self, count: usize) -> Vec<f64> {
        if self.logarithmic {
            self.decades(count)
        } else {
            self.steps(count)
        }
    }

    fn steps(&self, count: usize) -> Vec<f64> {
        let rough = (self.values.end - self.values.start) / count as f64;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|x| x * power)
            .into_iter()
            .find(|&step| step >= rough * 0.999);
        let step = step.unwrap_or(rough);
        let first = (self.values.start / step).ceil() as i64;
        (first..)
            .map(|i| i as f64 * step)
            .take_while(|&x| x <= self.values.end * (1.0 + 1e-9))
            .take(50)
            .collect()
    }

    fn decades(&self, count: usize) -> Vec<f64> {
        let low = self.values.start.log10().floor() as i32;
        let high = self.values.end.log10().ceil() as i32;
        let within = |x: &f64| (self.values.start * 0.999..=self.values.end * 1.001).contains(x);
        let of = |digits: &[f64], every: i32| -> Vec<f64> {
            let powers = (low..=high).filter(|power| power.rem_euclid(every) == 0);
            powers
                .flat_map(|power| digits.iter().map(move |digit| digit * 10_f64.powi(power)))
                .filter(within)
                .collect()
        };
        let fine = [
            (&[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0][..], 1),
            (&[1.0, 2.0, 5.0], 1),
            (&[1.0, 3.0], 1),
        ];
        let coarse = [1, 2, 3, 4, 6, 10, 20, 50].map(|every| (&[1.0][..], every));
        let mut choices = fine.into_iter().chain(coarse).map(|(digits, every)| of(digits, every));
        choices.find(|ticks| ticks.len() <= count).unwrap_or_default()
    }
}

/// The frame that plots share: grid lines and their labels.
struct Axes {
    x: Scale,
    y: Scale,
}

fn x_places() -> Range<f64> {
    LEFT..WIDTH - RIGHT
}

fn y_places() -> Range<f64> {
    HEIGHT - BOTTOM..TOP
}

impl Axes {
    fn draw(
        &self,
        x: (&[f64], &dyn Fn(f64) -> String, &str),
        y: (&[f64], &dyn Fn(f64) -> String, &str),
    ) -> Markup {
        let (x_ticks, x_text, x_title) = x;
        let (y_ticks, y_text, y_title) = y;
        let bottom = HEIGHT - BOTTOM;
        html! {
            @for &tick in y_ticks {
                line.grid x1=(N(LEFT)) x2=(N(WIDTH - RIGHT)) y1=(N(self.y.at(tick)))
                    y2=(N(self.y.at(tick))) {}
                text.tick x=(N(LEFT - 6.0)) y=(N(self.y.at(tick) + 3.5)) text-anchor="end"
                    { (y_text(tick)) }
            }
            @for &tick in x_ticks {
                line.grid x1=(N(self.x.at(tick))) x2=(N(self.x.at(tick))) y1=(N(bottom))
                    y2=(N(bottom + 4.0)) {}
                text.tick x=(N(self.x.at(tick))) y=(N(bottom + 15.0)) text-anchor="middle"
                    { (x_text(tick)) }
            }
            line.axis x1=(N(LEFT)) x2=(N(WIDTH - RIGHT)) y1=(N(bottom)) y2=(N(bottom)) {}
            text.title x=(N(WIDTH - RIGHT)) y=(N(HEIGHT - 6.0)) text-anchor="end" { (x_title) }
            text.title x="2" y="9" { (y_title) }
        }
    }
}

fn svg(label: &str, height: f64, content: &Markup) -> Markup {
    html! {
        svg role="img" aria-label=(label) viewBox={ "0 0 " (N(WIDTH)) " " (N(height)) }
            { (content) }
    }
}

/// A table's bytes in the checkpoint and in the blob.
pub(super) struct Size<'a> {
    pub(super) name: &'a str,
    pub(super) before: u64,
    pub(super) after: u64,
}

/// Two bars for each table.
pub(super) fn sizes(tables: &[&Size<'_>], label: &str) -> Markup {
    const ROW: f64 = 46.0;
    const VALUE: f64 = 58.0;
    let most = tables.iter().map(|size| size.before.max(size.after)).max().unwrap_or(0).max(1);
    // A length is in proportion to its bytes, however small.
    let scale = Scale::linear(0.0..most as f64, 0.0..WIDTH - VALUE);
    let bottom = ROW * tables.len() as f64;
    let bar = |class: &str, y: f64, bytes: u64| {
        let width = scale.at(bytes as f64).max(1.5);
        html! {
            rect class=(class) x="0" y=(N(y)) width=(N(width)) height="11" rx="2" {}
            text.value x=(N(width + 6.0)) y=(N(y + 9.0)) { (numbers::bytes(bytes)) }
        }
    };
    let ticks = scale.ticks(4);
    let content = html! {
        @for &tick in &ticks {
            line.grid x1=(N(scale.at(tick))) x2=(N(scale.at(tick))) y1="4" y2=(N(bottom)) {}
            @let anchor = if scale.at(tick) < 12.0 { "start" } else { "middle" };
            text.tick x=(N(scale.at(tick))) y=(N(bottom + 13.0)) text-anchor=(anchor)
                { (numbers::tick(&numbers::bytes(tick as u64))) }
        }
        @for (table, y) in tables.iter().zip(0..).map(|(table, i)| (table, ROW * f64::from(i))) {
            text.label x="0" y=(N(y + 11.0)) { (shorten(table.name, 48)) }
            (bar("before", y + 16.0, table.before))
            (bar("after", y + 29.0, table.after))
        }
    };
    svg(label, bottom + 18.0, &content)
}

/// A name of at most `limit` characters: an ellipsis replaces the middle of a longer one.
fn shorten(name: &str, limit: usize) -> String {
    let characters: Vec<char> = name.chars().collect();
    if characters.len() <= limit {
        return name.to_owned();
    }
    let kept = limit - 1;
    let (head, tail) =
        (&characters[..kept / 2], &characters[characters.len() - kept.div_ceil(2)..]);
    head.iter().chain(&['…']).chain(tail).collect()
}

/// A histogram of the rows' errors; `marks` are drawn as lines.
pub(super) fn histogram(bars: &[HistogramBar], marks: &[f64], label: &str) -> Markup {
    let (Some(first), Some(last)) = (bars.first(), bars.last()) else { return html! {} };
    let most = bars.iter().map(|bar| bar.count).max().unwrap_or(1);
    let x = Scale::logarithmic(first.errors.start..last.errors.end, x_places());
    let axes = Axes { x, y: Scale::linear(0.0..most as f64 * 1.05, y_places()) };
    let whole = |x: f64| {
        let count = x as u64;
        if count >= 10_000 {
            format!("{}k", count / 1000)
        } else {
            numbers::count(count)
        }
    };
    let y_ticks: Vec<f64> =
        axes.y.ticks(4).into_iter().filter(|tick| tick.fract() == 0.0).collect();
    let content = html! {
        (axes.draw((&axes.x.ticks(5), &|x| numbers::tick(&numbers::percent(x)),
            "error of a row, log scale"), (&y_ticks, &whole, "rows per bar, bars equally wide")))
        @for bar in bars.iter().filter(|bar| bar.count > 0) {
            @let (left, right) = (axes.x.at(bar.errors.start), axes.x.at(bar.errors.end));
            @let top = axes.y.at(bar.count as f64).min(HEIGHT - BOTTOM - 1.0);
            rect.bar x=(N(left)) y=(N(top)) width=(N((right - left - 1.0).max(1.0)))
                height=(N(HEIGHT - BOTTOM - top)) {}
        }
        @for &mark in marks.iter().filter(|mark| **mark > 0.0) {
            line.mark x1=(N(axes.x.at(mark))) x2=(N(axes.x.at(mark))) y1=(N(TOP))
                y2=(N(HEIGHT - BOTTOM)) {}
        }
    };
    svg(label, HEIGHT, &content)
}

/// The share of the squared norm that ranks 1, 2, ... keep, and a dashed line for equal shares.
pub(super) fn kept(cumulative: &[f64], label: &str) -> Markup {
    let n = cumulative.len() as f64;
    let axes =
        Axes { x: Scale::linear(0.0..n, x_places()), y: Scale::linear(0.0..1.0, y_places()) };
    // At most as many points as the picture has pixels.
    let every = cumulative.len().div_ceil(WIDTH as usize);
    let points = cumulative
        .iter()
        .zip(1..)
        .filter(|(_, i)| i % every == 0 || *i == cumulative.len());
    let mut path = format!("M{} {}", LEFT, HEIGHT - BOTTOM);
    for (&share, i) in points {
        path.push_str(
            &html! { "L" (N(axes.x.at(i as f64))) " " (N(axes.y.at(share))) }.into_string(),
        );
    }
    let closed = html! { (path) "L" (N(axes.x.at(n))) " " (N(HEIGHT - BOTTOM)) "Z" }.into_string();
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let content = html! {
        (axes.draw(
            (&axes.x.ticks(5), &|x| format!("{x}"), "rank"),
            (&[0.0, 0.25, 0.5, 0.75, 1.0], &percent, "squared norm kept"),
        ))
        path.area d=(closed) {}
        line.even x1=(N(LEFT)) y1=(N(HEIGHT - BOTTOM)) x2=(N(axes.x.at(n))) y2=(N(axes.y.at(1.0)))
            {}
        path.curve d=(path) {}
    };
    svg(label, HEIGHT, &content)
}

/// Points connected by a line.
pub(super) struct Series<'a> {
    /// The class of its points and its line.
    pub(super) class: &'a str,
    pub(super) points: Vec<PlotPoint>,
}

pub(super) struct PlotPoint {
    pub(super) bytes: u64,
    pub(super) error: f64,
    pub(super) text: String,
}

/// Smaller errors are drawn at the bottom of the plot.
const LEAST_ERROR: f64 = 1e-5;

/// Errors against bytes, both logarithmic; `own` is the blob's.
pub(super) fn tradeoff(series: &[Series<'_>], own: &PlotPoint, label: &str) -> Markup {
    const HEIGHT: f64 = 250.0;
    let points = || series.iter().flat_map(|series| &series.points).chain([own]);
    let bytes = || points().map(|point| point.bytes.max(1) as f64);
    let errors = || {
        points()
            .map(|point| point.error)
            .filter(|error| *error >= LEAST_ERROR && error.is_finite())
    };
    let least_bytes = bytes().fold(f64::INFINITY, f64::min);
    let most_bytes = bytes().fold(1.0, f64::max);
    let least = errors().fold(1.0, f64::min);
    // The decade below the least drawable error is for smaller ones.
    let floor = 10_f64.powf((least * 0.999).log10().floor()).max(LEAST_ERROR);
    let most = errors().fold(1.0, f64::max);
    let x = Scale::logarithmic(least_bytes * 0.8..most_bytes * 1.3, x_places());
    let y = Scale::logarithmic(floor..most * 1.2, HEIGHT - BOTTOM..TOP);
    let place = |point: &PlotPoint| (x.at(point.bytes as f64), y.at(point.error));

    let named = || points().filter(|point| !point.text.is_empty());
    let mut taken: Vec<[f64; 4]> = named().map(|point| around(place(point), 5.0)).collect();
    // The lines, as small squares along them, so that no line crosses a label.
    for series in series {
        let places: Vec<(f64, f64)> = frontier(&series.points).map(place).collect();
        for pair in places.windows(2) {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            let steps = ((x1 - x0).hypot(y1 - y0) / 3.0).ceil().max(1.0);
            taken.extend((0..=steps as u32).map(|i| {
                let share = f64::from(i) / steps;
                around((x0 + share * (x1 - x0), y0 + share * (y1 - y0)), 1.5)
            }));
        }
    }
    let own_label = label_at(place(own), HEIGHT - BOTTOM - 3.0, &own.text, &mut taken);
    let labels: Vec<(f64, f64, &str)> = series
        .iter()
        .flat_map(|series| &series.points)
        .filter(|point| !point.text.is_empty())
        .filter_map(|point| {
            label_at(place(point), HEIGHT - BOTTOM - 3.0, &point.text, &mut taken)
                .map(|(x, y)| (x, y, point.text.as_str()))
        })
        .collect();
    let y_text = |error: f64| {
        let text = numbers::tick(&numbers::percent(error));
        if error <= floor { format!("≤{text}") } else { text }
    };
    let x_ticks = x.ticks(4);
    let y_ticks = y.ticks(6);
    let bottom = HEIGHT - BOTTOM;
    let content = html! {
        @for &tick in &y_ticks {
            line.grid x1=(N(LEFT)) x2=(N(WIDTH - RIGHT)) y1=(N(y.at(tick))) y2=(N(y.at(tick))) {}
            text.tick x=(N(LEFT - 5.0)) y=(N(y.at(tick) + 3.5)) text-anchor="end" { (y_text(tick)) }
        }
        @for &tick in &x_ticks {
            line.grid x1=(N(x.at(tick))) x2=(N(x.at(tick))) y1=(N(bottom)) y2=(N(bottom + 4.0)) {}
            text.tick x=(N(x.at(tick))) y=(N(bottom + 15.0)) text-anchor="middle"
                { (numbers::tick(&numbers::bytes(tick as u64))) }
        }
        line.axis x1=(N(LEFT)) x2=(N(WIDTH - RIGHT)) y1=(N(bottom)) y2=(N(bottom)) {}
        text.title x=(N(WIDTH - RIGHT)) y=(N(HEIGHT - 6.0)) text-anchor="end" { "bytes" }
        text.title x="2" y="9" { "relative error" }
        @for series in series {
            g class=(series.class) {
                @let line: Vec<String> = frontier(&series.points).map(|point| {
                    let (x, y) = place(point);
                    html! { (N(x)) "," (N(y)) }.into_string()
                }).collect();
                polyline points=(line.join(" ")) {}
                @for point in series.points.iter().filter(|point| !point.text.is_empty()) {
                    @let (x, y) = place(point);
                    circle cx=(N(x)) cy=(N(y)) r="3.5" {}
                }
            }
        }
        @for (x, y, text) in labels { text.label x=(N(x)) y=(N(y)) { (text) } }
        @let (x, y) = place(own);
        path.own d={ "M" (N(x)) " " (N(y - 7.0)) "l7 7l-7 7l-7-7Z" } {}
        @if let Some((x, y)) = own_label { text.ownlabel x=(N(x)) y=(N(y)) { (own.text) } }
    };
    svg(label, HEIGHT, &content)
}

/// What whole models lose, over their bytes; `most` is the most that they may lose, and `own` is
/// the blob's.
pub(super) fn judged(choices: &[(u64, f64)], most: f64, own: (u64, f64), label: &str) -> Markup {
    let all = || choices.iter().chain([&own]).filter(|(_, loss)| loss.is_finite());
    let bytes = || all().map(|(bytes, _)| *bytes as f64);
    let (least, largest) = (bytes().fold(f64::INFINITY, f64::min), bytes().fold(1.0, f64::max));
    let low = all().fold(0.0, |low: f64, (_, loss)| low.min(*loss));
    // What is far above the limit is drawn at the top.
    let high = all().fold(most, |high, (_, loss)| high.max(*loss)).min(4.0 * most);
    let margin = (high - low) * 0.08;
    let axes = Axes {
        x: Scale::logarithmic(least * 0.8..largest * 1.3, x_places()),
        y: Scale::linear(low - margin..high + margin, y_places()),
    };
    let decimals = (1.0 - (high - low).log10().floor()).clamp(0.0, 9.0) as usize;
    let place = |&(bytes, loss): &(u64, f64)| (axes.x.at(bytes as f64), axes.y.at(loss));
    let content = html! {
        (axes.draw((&axes.x.ticks(4), &|x| numbers::tick(&numbers::bytes(x as u64)), "bytes"),
            (&axes.y.ticks(4), &|y| format!("{y:.decimals$}"), "worse than as f32 by")))
        line.mark x1=(N(LEFT)) x2=(N(WIDTH - RIGHT)) y1=(N(axes.y.at(most)))
            y2=(N(axes.y.at(most))) {}
        @for choice in choices.iter().filter(|(_, loss)| loss.is_finite()) {
            @let (x, y) = place(choice);
            g class=(if choice.1 <= most { "dense" } else { "tt" })
                { circle cx=(N(x)) cy=(N(y)) r="3" {} }
        }
        @let (x, y) = place(&own);
        path.own d={ "M" (N(x)) " " (N(y - 7.0)) "l7 7l-7 7l-7-7Z" } {}
    };
    svg(label, HEIGHT, &content)
}

/// A named line of points.
pub(crate) struct Line {
    pub(crate) name: String,
    /// The CSS class of its colour.
    pub(crate) class: &'static str,
    /// Ascending.
    pub(crate) points: Vec<(f64, f64)>,
}

/// CSS classes of different colours.
pub(crate) const CLASSES: [&str; 6] = ["dense", "tt", "low", "other", "before", "last"];

/// A plot of a [`page`].
pub(crate) struct Picture {
    content: Markup,
    height: f64,
}

/// A plot of lines over a linear x axis from 0; lines without points are omitted.
pub(crate) fn lines(lines: &[Line], x_title: &str, y_title: &str) -> Picture {
    let end = lines
        .iter()
        .flat_map(|line| &line.points)
        .fold(0.0, |end: f64, (x, _)| end.max(*x));
    lines_over(lines, Scale::linear(0.0..end, x_places()), &|x| format!("{x}"), x_title, y_title)
}

/// A plot of lines over a logarithmic axis of bytes.
pub(crate) fn lines_over_bytes(lines: &[Line], y_title: &str) -> Picture {
    let bytes = || lines.iter().flat_map(|line| &line.points).map(|(bytes, _)| bytes.max(1.0));
    let (least, most) = (bytes().fold(f64::INFINITY, f64::min), bytes().fold(1.0, f64::max));
    let scale = Scale::logarithmic(least.min(most) * 0.8..most * 1.3, x_places());
    lines_over(lines, scale, &|x| numbers::tick(&numbers::bytes(x as u64)), "bytes", y_title)
}

fn lines_over(
    lines: &[Line],
    x: Scale,
    x_text: &dyn Fn(f64) -> String,
    x_title: &str,
    y_title: &str,
) -> Picture {
    let finite = |(x, y): &(f64, f64)| x.is_finite() && y.is_finite();
    let lines = || lines.iter().filter(|line| line.points.iter().any(finite));
    let ys = || {
        lines()
            .flat_map(|line| &line.points)
            .filter(|point| finite(point))
            .map(|(_, y)| *y)
    };
    let (least, most) =
        (ys().fold(f64::INFINITY, f64::min), ys().fold(f64::NEG_INFINITY, f64::max));
    if least > most {
        return Picture { content: html! {}, height: 0.0 };
    }
    let margin = ((most - least) * 0.08).max(most.abs() * 1e-3).max(1e-6);
    let axes = Axes { x, y: Scale::linear(least - margin..most + margin, y_places()) };
    let decimals = (1.0 - (most - least + margin).log10().floor()).clamp(0.0, 9.0) as usize;
    let (keys, legend) = legend(lines().map(|line| line.name.chars().count()));
    let plot = html! {
        (axes.draw((&axes.x.ticks(5), x_text, x_title),
            (&axes.y.ticks(4), &|y| format!("{y:.decimals$}"), y_title)))
        @for line in lines() {
            g class=(line.class) {
                @let places: Vec<(f64, f64)> =
                    line.points.iter().filter(|point| finite(point)).map(|(x, y)| {
                    (axes.x.at(*x), axes.y.at(*y))
                }).collect();
                @let path: Vec<String> =
                    places.iter().map(|(x, y)| html!
                    { (N(*x)) "," (N(*y)) }.into_string()).collect();
                polyline points=(path.join(" ")) {}
                @if places.len() < 60 {
                    @for (x, y) in places { circle cx=(N(x)) cy=(N(y)) r="2.5" {} }
                }
            }
        }
    };
    let content = html! {
        @for (line, (x, y)) in lines().zip(keys) {
            g class=(line.class) {
                circle cx=(N(x)) cy=(N(y - 3.5)) r="3" {}
                text.label x=(N(x + 8.0)) y=(N(y)) { (line.name) }
            }
        }
        g transform={ "translate(0 " (N(legend)) ")" } { (plot) }
    };
    let height = HEIGHT + legend;
    Picture { content: svg(&format!("{y_title} over {x_title}"), height, &content), height }
}

/// The positions of legend entries of these lengths, in rows above a plot, and the rows' height.
fn legend(names: impl Iterator<Item = usize>) -> (Vec<(f64, f64)>, f64) {
    const ROW: f64 = LINE + 3.0;
    const FIRST: f64 = 5.0;
    let (mut places, mut next) = (Vec::new(), (FIRST, 9.0));
    for characters in names {
        let width = 8.0 + characters as f64 * CHARACTER;
        if next.0 + width > WIDTH && next.0 > FIRST {
            next = (FIRST, next.1 + ROW);
        }
        places.push(next);
        next.0 += width + 14.0;
    }
    (places, next.1 + ROW - 5.0)
}

/// An SVG file with the pictures one below another.
pub(crate) fn page(pictures: &[Picture]) -> String {
    let pictures: Vec<&Picture> =
        pictures.iter().filter(|picture| !picture.content.0.is_empty()).collect();
    const BETWEEN: f64 = 14.0;
    let height = |count: usize| {
        pictures[..count].iter().map(|picture| picture.height + BETWEEN).sum::<f64>()
    };
    let whole = height(pictures.len()).max(BETWEEN);
    html! {
        svg xmlns="http://www.w3.org/2000/svg"
            viewBox={ "-6 -6 " (N(WIDTH + 12.0)) " " (N(whole)) } width="704" {
            style { (maud::PreEscaped(STYLE)) }
            rect.page x="-6" y="-6" width="100%" height="100%" {}
            @for (picture, number) in pictures.iter().zip(0..) {
                svg x="0" y=(N(height(number))) width=(N(WIDTH)) height=(N(picture.height))
                    { (picture.content) }
            }
        }
    }
    .into_string()
}

/// The points with less error than every smaller one, so that a line through them always descends.
fn frontier(points: &[PlotPoint]) -> impl Iterator<Item = &PlotPoint> {
    let alike = |point: &PlotPoint| {
        points
            .iter()
            .any(|other| other.bytes == point.bytes && other.error < point.error)
    };
    points.iter().filter(move |point| !alike(point))
}

/// The square around a point: left, top, right, bottom.
fn around((x, y): (f64, f64), radius: f64) -> [f64; 4] {
    [x - radius, y - radius, x + radius, y + radius]
}

/// A position near a point where a text covers nothing, if there is one; the table below the plot
/// has every label.
fn label_at(
    (x, y): (f64, f64),
    bottom: f64,
    text: &str,
    taken: &mut Vec<[f64; 4]>,
) -> Option<(f64, f64)> {
    let width = text.chars().count() as f64 * CHARACTER;
    let left = x - 9.0 - width;
    let middle = x - width / 2.0;
    let places = [
        (x + 9.0, y + 3.5),
        (left, y + 3.5),
        (middle, y - 9.0),
        (middle, y + 17.0),
        (x + 7.0, y - 7.0),
        (x + 7.0, y + 14.0),
        (left + 2.0, y - 7.0),
        (left + 2.0, y + 14.0),
    ];
    let found = places.into_iter().find(|&(x, y)| {
        let box_ = [x, y - LINE + 2.0, x + width, y + 2.0];
        let inside = box_[0] >= LEFT + 2.0 && box_[2] <= WIDTH && box_[1] >= 12.0 && y <= bottom;
        inside && taken.iter().all(|other| !overlap(&box_, other))
    })?;
    taken.push([found.0, found.1 - LINE + 2.0, found.0 + width, found.1 + 2.0]);
    Some(found)
}

fn overlap(a: &[f64; 4], b: &[f64; 4]) -> bool {
    a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        let ticks = |values, count| Scale::linear(values, 0.0..1.0).ticks(count);
        assert_eq!(ticks(0.0..384.0, 5), [0.0, 100.0, 200.0, 300.0]);
        assert_eq!(ticks(0.0..1.0, 4), [0.0, 0.5, 1.0]);
        let ticks = |values, count| Scale::logarithmic(values, 0.0..1.0).ticks(count);
        assert_eq!(ticks(1e-4..1.0, 5).len(), 5);
        for (low, high) in [(1.0, 1.5), (0.011, 0.019), (1e3, 1e9), (1e-30, 1e30), (5.0, 6.0)] {
            let ticks = ticks(low..high, 5);
            assert!(
                ticks.len() <= 5
                    && ticks.iter().all(|tick| (low * 0.99..high * 1.01).contains(tick)),
                "{ticks:?}"
            );
        }
    }

    #[test]
    fn long_names_lose_their_middle() {
        assert_eq!(shorten("item", 48), "item");
        let short = shorten(&"é".repeat(100), 48);
        assert_eq!((short.chars().count(), short.contains('…')), (48, true));
    }
}
