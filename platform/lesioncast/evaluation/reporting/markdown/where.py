"""Section of tables.md on where new lesions lie: maps, reliance on images, sampled masks."""

from lesioncast.evaluation.analysis.where import (
    MapScores,
    RelianceScores,
    SampledMasks,
    WhereReport,
)
from lesioncast.evaluation.where.measurements import (
    EXACT,
    MAP_LABELS,
    NETWORKS,
    RELIANCE_LABELS,
    RINGS,
    SAMPLE_LABELS,
    SPATIAL_PRIOR,
)
from lesioncast.markdown import DASH, format_estimate, format_number, markdown_table

_EXACT_WORDS = (
    "The exact law knows what no image shows: the patient's true anatomy, every older lesion, the "
    "frailty, and in the map the number of new lesions."
)


def where_section(report: WhereReport | None) -> str:
    """Return the tables of where; nothing where it was not measured."""
    if report is None:
        return ""
    return "\n\n".join(
        [
            "## Where: maps as densities over the brain",
            f"{report.positives} of {report.cases} test cases have new lesions, with "
            f"{report.lesion_voxels} voxels in the brain mask and {report.voxels_outside} outside, "
            "which are not scored. Each map is a density over the voxels of the case's brain, "
            f"given that the case has new lesions, and has a share of {report.even_share:.0%} of "
            "the even brain. Information gain is the sum over a case's new-lesion voxels of "
            "log(density / atlas density), in nats, averaged over cases; a lesion, the mean over "
            "the case's lesions of the mean over the lesion's voxels (Vere-Jones 1998; Rhoades et "
            "al. 2011). Above 0 a map is better than the atlas, a mean of the training cases' new "
            f"lesions smoothed by {report.atlas_mm:g} mm. AUC: a new-lesion voxel against the "
            "other voxels of the same brain. Top 1, 5, 10 %: share of the new-lesion voxels in so "
            "much of the brain. Miscalibration: divergence of the observed from the forecast "
            f"shares over bins of ranks, in nats a voxel; 0 is best. {_EXACT_WORDS}",
            _maps(report),
            *_differences(report),
            *(
                _ranks(MAP_LABELS[key], report.maps[key])
                for key in (RINGS, SPATIAL_PRIOR, NETWORKS, EXACT)
                if key in report.maps
            ),
            _ring_rates(report),
            _reliance(report.reliance),
            _samples(report.samples),
        ]
    )


def _maps(report: WhereReport) -> str:
    rows = [
        [
            MAP_LABELS[key],
            format_estimate(scores.nats_case, digits=2),
            format_estimate(scores.nats_lesion, digits=2),
            format_estimate(scores.auc),
            format_estimate(scores.top_1),
            format_estimate(scores.top_5),
            format_estimate(scores.top_10),
            format_estimate(scores.miscalibration),
        ]
        for key, scores in report.maps.items()
    ]
    head = ["map", "gain over the atlas, nats a case", "nats a lesion", "in-brain AUC"]
    head += ["top 1 %", "top 5 %", "top 10 %", "miscalibration"]
    return f"### Maps of the cases with new lesions\n\n{markdown_table(head, rows)}"


def _differences(report: WhereReport) -> list[str]:
    """Return the table of differences between maps as a list; empty without a spatial prior."""
    if not report.differences:
        return []
    rows = [
        [
            MAP_LABELS[row.method],
            MAP_LABELS[row.minus_method],
            format_estimate(row.difference, digits=2),
        ]
        for row in report.differences
    ]
    return [
        "### The spatial prior beside other maps\n\nThe networks start from the map of the spatial "
        "prior, which is fitted by itself. Differences are paired: both maps score the same "
        f"cases.\n\n{markdown_table(['map', 'minus', 'nats a case'], rows)}"
    ]


def _ranks(label: str, scores: MapScores) -> str:
    rows = [
        [row.group, f"{row.probability:.5f}", format_estimate(row.observed, digits=5)]
        for row in scores.ranks
    ]
    head = ["voxels of the brain by rank", "forecast probability", "observed share"]
    return (
        f"### Reliability of the map: {label}\n\nThe forecast probability of a new lesion at a "
        "voxel is the density times the mean new-lesion voxels of the arm's active training "
        f"cases.\n\n{markdown_table(head, rows)}"
    )


def _ring_rates(report: WhereReport) -> str:
    outer = [ring.outer_mm for ring in report.rings]
    names = ["inside", *(f"to {edge:g}" for edge in outer[1:] if edge is not None), "beyond"]
    rows = [
        [name, format_number(r.rate, digits=2)] for name, r in zip(names, report.rings, strict=True)
    ]
    return (
        "### Rate of new lesions by distance to older ones, relative to the atlas\n\nFitted on "
        f"training cases.\n\n{markdown_table(['distance (mm)', 'rate'], rows)}"
    )


def _reliance(reliance: RelianceScores | None) -> str:
    title = "### Does the map depend on the patient's own images?"
    if reliance is None:
        return f"{title}\n\nNo two cases with new lesions have the same arm."
    rows = [
        [
            RELIANCE_LABELS[key],
            format_estimate(scores.nats_case, digits=2),
            DASH if scores.loss is None else format_estimate(scores.loss, digits=2),
            format_estimate(scores.auc),
        ]
        for key, scores in reliance.inputs.items()
    ]
    head = ["map from", "gain over the atlas, nats a case"]
    head += ["lost against own images", "in-brain AUC"]
    return (
        f"{title}\n\n{reliance.cases} cases with new lesions. The other patient is the next test "
        f"case of the arm with new lesions. A map that ignores the images loses nothing.\n\n"
        f"{markdown_table(head, rows)}"
    )


def _samples(samples: SampledMasks) -> str:
    rows = [
        [
            SAMPLE_LABELS[key],
            format_estimate(scores.kernel_3mm),
            format_estimate(scores.kernel_6mm),
            format_estimate(scores.kernel_10mm),
            format_estimate(scores.energy_distance),
            format_estimate(scores.f1),
            format_estimate(scores.voxels, digits=1),
        ]
        for key, scores in samples.methods.items()
    ]
    head = ["samples of", "kernel score, 3 mm", "6 mm", "10 mm", "energy distance (1 - IoU)"]
    head += ["lesion F1", "voxels a sample"]
    return (
        f"### Sampled masks\n\n{samples.cases} test cases, as many samples of each method; "
        f"{samples.observed_voxels:.1f} new-lesion voxels a case were observed. Kernel score: "
        "energy score on masks smoothed by so many mm (Gneiting and Raftery 2007), relative to "
        "that of a forecast without lesions, which has 1; lower is better. Read energy distance "
        "and lesion F1 beside those of the exact law, where it is known: they are what a perfect "
        "forecast would have. Its samples draw the number of lesions and their places once "
        f"more.\n\n{markdown_table(head, rows)}"
    )
