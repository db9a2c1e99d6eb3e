"""The assessment of a result as a short list: every finding, and what to do about it."""

from haze_pipeline.reliability.assessment import Assessment


# By words that only this warning, or this check that could not be made, contains.
ADVICE = {
    "probably degrades": "Measure in the input, or lower the strength.",
    "unlike those in the training": "Trust only structure that you also see in the input, or choose a checkpoint that "
    "was trained on such images.",
    "trained on pixels of": "Check the pixel size in the file. If it is right, resample the image to such pixels, for "
    "example with Image › Scale in Fiji.",
    "predicted from noise alone": "Do not interpret faint structure. Average frames or expose longer.",
    "does not explain the structure": "Trust only structure that you also see in the input, or lower the strength.",
    "Fine structure is missing": "Count and segment small structures in the input, or lower the strength.",
    "intensity where the input has none": "Compare both pictures at the same contrast, and ignore structure that only "
    "the result has.",
    "different gains": "Measure shapes and positions in the result, and intensities in the input.",
    "all its pixels are NaN": "Choose another plane or channel, or export the image again.",
    "all its pixels have one value": "Choose another plane or channel.",
    "are saturated": "Exclude these pixels from measurements. Expose the next image for a shorter time.",
    "grey levels": "Save images with 12 or 16 bits. The downloaded result is not rounded to these levels.",
    "background is brighter": "If only the display of a fluorescence image is inverted, invert it. Do not dehaze "
    "brightfield images.",
    "whether dehazing such images helps": "Compare the result with the input.",
    "whether such images were trained on": "Choose an image of at least 128 × 128 pixels, or another checkpoint.",
    "whether such pixel sizes were trained on": "Set the pixel size, for example with Image › Properties in Fiji.",
    "which structure the network predicts from noise": "Upload the raw image: one whose background was set to a "
    "single value hides its noise.",
    "whether intensity was added": "Compare input and result, each at its own contrast.",
}


def list_findings(assessments: dict[int, Assessment]) -> str:
    """
    List the warnings and the checks that could not be made, each with what to do, as Markdown.

    Args:
        assessments (`dict[int, Assessment]`): By number of the plane. Numbers are shown if there are several.
    """
    found, not_checked = {}, {}
    for number, assessment in assessments.items():
        for warning in assessment.warnings:
            found.setdefault(warning, []).append(number)
        for check in assessment.not_checked:
            not_checked.setdefault(check, []).append(number)
    if found:
        conclusion = "Only with care:" if len(found) == 1 else f"Only with care, for {len(found)} reasons:"
    elif not_checked:
        conclusion = "The checks that could be made found no fault."
    else:
        conclusion = "No check found a fault."
    if len(assessments) > 1:
        conclusion = f"{conclusion.rstrip(':.')} (planes {_listed(assessments)} were checked){conclusion[-1]}"
    lines = [f"**Can it be trusted?** {conclusion}"]
    for warning, numbers in found.items():
        # One warning ends with an option of the command line.
        finding = warning.partition(": use --")[0].rstrip(".")
        lines.append(f"- **{finding}{_planes(numbers, assessments)}.** {advice(warning)}".rstrip())
    for check, numbers in not_checked.items():
        lines.append(f"- Not checked: {check}{_planes(numbers, assessments)}. {advice(check)}".rstrip())
    return "\n".join(lines[:1] + [""] * (len(lines) > 1) + lines[1:])


def advice(finding: str) -> str:
    """What to do about a finding; empty if it is not known."""
    return next((todo for words, todo in ADVICE.items() if words in finding), "")


def _planes(numbers: list[int], assessments: dict[int, Assessment]) -> str:
    """The planes with a finding, if not all of those that were checked have it."""
    if len(numbers) == len(assessments):
        return ""
    return f" ({'plane' if len(numbers) == 1 else 'planes'} {_listed(numbers)})"


def _listed(numbers) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last
