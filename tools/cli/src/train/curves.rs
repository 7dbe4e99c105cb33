//! The training curves, as CSV and as SVG.

use super::{checkpoint::CurvePoint, metrics::Quality, ranking::Ranking};
use crate::{
    output::Output,
    report::plot::{self, Line},
};
use anyhow::Result;
use std::path::Path;

pub(super) fn write(csv: &Path, svg: &Path, points: &[CurvePoint]) -> Result<()> {
    let mut output = Output::create(csv)?;
    output.write(|out| {
        writeln!(
            out,
            "epoch,step,learning_rate,loss,valid_log_loss,valid_auc,valid_accuracy,\
             valid_calibration,valid_{}",
            Ranking::NAMES.join(",valid_")
        )?;
        points.iter().try_for_each(|CurvePoint { epoch, step, learning_rate, loss, valid }| {
            let known =
                |number: Option<f64>| number.map_or_else(String::new, |number| number.to_string());
            let log_loss = known(valid.map(|valid| valid.log_loss));
            let auc = known(valid.and_then(|valid| valid.auc));
            let accuracy = known(valid.map(|valid| valid.accuracy));
            let calibration = known(valid.and_then(|valid| valid.calibration));
            write!(
                out,
                "{epoch},{step},{learning_rate},{loss},{log_loss},{auc},{accuracy},{calibration}"
            )?;
            let ranking = Ranking::values(valid.and_then(|valid| valid.ranking));
            ranking.iter().try_for_each(|value| write!(out, ",{}", known(*value)))?;
            writeln!(out)
        })
    })?;
    output.commit()?;

    let mut output = Output::create(svg)?;
    output.write(|out| out.write_all(picture(points).as_bytes()))?;
    Ok(output.commit()?)
}

fn picture(points: &[CurvePoint]) -> String {
    // The x axis counts epochs; the last point of an epoch gives its number of steps.
    let steps = |epoch: u32| {
        points.iter().filter(|point| point.epoch == epoch).map(|point| point.step).max()
    };
    let at = |point: &CurvePoint| {
        let whole = steps(point.epoch)
            .unwrap_or(1)
            .max(points.iter().map(|point| point.step).max().unwrap_or(1))
            .max(1);
        f64::from(point.epoch - 1) + point.step as f64 / whole as f64
    };
    let line = |name: &'static str,
                class: &'static str,
                value: &dyn Fn(&CurvePoint) -> Option<f64>| Line {
        name: name.to_owned(),
        class,
        points: points.iter().filter_map(|point| Some((at(point), value(point)?))).collect(),
    };
    let of_valid =
        |value: fn(Quality) -> Option<f64>| move |point: &CurvePoint| point.valid.and_then(value);
    let losses = [
        line("training", "dense", &|point| Some(point.loss)),
        line("validation", "tt", &of_valid(|valid| Some(valid.log_loss))),
    ];
    let shares = [
        line("AUC", "tt", &of_valid(|valid| valid.auc)),
        line("accuracy", "low", &of_valid(|valid| Some(valid.accuracy))),
        line("NDCG@20", "other", &of_valid(|valid| Some(valid.ranking?.ndcg_20))),
    ];
    plot::page(&[
        plot::lines(&losses, "epochs", "log-loss"),
        plot::lines(&shares, "epochs", "of the validation split"),
    ])
}
