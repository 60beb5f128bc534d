//! The ratios as a picture: where they lie, how they spread, and what was required.

use std::path::Path;

use plotters::prelude::{
    BLACK, ChartBuilder, Circle, Color as _, IntoDrawingArea as _, IntoFont as _,
    IntoLogRange as _, PathElement, RGBColor, SVGBackend, ShapeStyle, Text, WHITE,
};

use crate::measure::{Row, Target};

const WIDTH: u32 = 1100;
const ROW: u32 = 34;
const MET: RGBColor = RGBColor(0x1b, 0x7f, 0x4b);
const MISSED: RGBColor = RGBColor(0xb4, 0x23, 0x18);

pub fn write(path: &Path, rows: &[Row]) -> anyhow::Result<()> {
    let rows: Vec<_> = rows.iter().filter(|row| row.ratio().is_some()).collect();
    let count = u32::try_from(rows.len())?;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let root = SVGBackend::new(path, (WIDTH, 90 + ROW * count)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("A guarded call, as a multiple of its reference", ("sans-serif", 20))
        .margin(12)
        .margin_left(520)
        .x_label_area_size(30)
        .build_cartesian_2d((0.1..10.0).log_scale(), 0.0..f64::from(count))?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_desc("ratio (| is the target)")
        .draw()?;
    for (index, row) in (0..count).zip(&rows) {
        let height = f64::from(count - index) - 0.5;
        let Some(median) = row.ratio() else { continue };
        let colour = if row.is_met() == Some(false) { MISSED } else { MET };
        let lowest = row.ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let highest = row.ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        chart.draw_series([PathElement::new(
            [(lowest, height), (highest, height)],
            colour.stroke_width(3),
        )])?;
        chart.draw_series([Circle::new((median, height), 5, ShapeStyle::from(colour).filled())])?;
        if let Target::AtMost(target) | Target::AtLeast(target) = row.target {
            chart.draw_series([PathElement::new(
                [(target, height - 0.35), (target, height + 0.35)],
                BLACK.stroke_width(2),
            )])?;
        }
        let label = format!("{} – {median:.2}", row.path.split(" (").next().unwrap_or_default());
        let (_, y) = chart.backend_coord(&(median, height));
        root.draw(&Text::new(label, (16, y - 7), ("sans-serif", 14).into_font()))?;
    }
    root.present()?;
    Ok(())
}
