"""The license that weights get from the data that they were trained on.

A set's own license decides: one that asks for share-alike or forbids commercial use carries over to the weights. Where
a set's terms are an agreement with its owner, nobody but the user can say what the weights may be used for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from calid_training.errors import UsageError

OPEN = "CC-BY-4.0"
"""What weights get that no set restricts."""

DATA_LICENSES: Mapping[str, str] = {
    "acdc": "CC-BY-NC-SA-4.0",
    "autofd": "MIT",
    "bivme": "Apache-2.0",
    "chla": "LicenseRef-citation",  # free to use where JCMR 10.1186/s12968-020-00678-0 is cited
    "sunnybrook": "CC0-1.0",
}
"""SPDX identifiers of the sets whose terms settle the matter; of others (mnms, ukbb, one's own) the user says it.

UK Biobank's terms are an agreement with its owner. M&Ms is "open access" (Campello et al. 2021) but for 30 of its 375
studies, which have to be applied for; what describes it names no license (nnU-Net: "see M&Ms challenge").
"""

CARRIED_OVER = ("CC-BY-NC-SA-4.0",)
"""Licenses that weights inherit, the strictest first."""


def license_of_weights(data: Iterable[str], foundations: Iterable[str] = (), *, asked: str | None = None) -> str:
    """The license of weights.

    Args:
        data: the sets they were trained on.
        foundations: licenses of weights that went into them, such as those of a frozen segmenter.
        asked: the user's choice, or None.

    Raises:
        UsageError: if the choice is freer than the data allow, or none was made where the user has to.
    """
    data = sorted(set(data))
    inherited = {*foundations, *(DATA_LICENSES.get(name, "") for name in data)}
    strictest = next((one for one in CARRIED_OVER if one in inherited), None)
    if strictest is not None:
        if asked not in (None, strictest):
            raise UsageError(
                f"weights trained on {', '.join(data)} carry {strictest}, which does not allow {asked}: "
                "leave out --license"
            )
        return strictest
    if asked is not None:
        return asked
    unknown = [name for name in data if name not in DATA_LICENSES]
    if unknown:
        raise UsageError(
            f"the terms of {', '.join(unknown)} do not say what weights may be used for: say it with --license, an "
            "SPDX identifier (LicenseRef-... for terms of your own)"
        )
    return OPEN
