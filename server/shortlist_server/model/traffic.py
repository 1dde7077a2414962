"""Which users a canary answers: a share of them, always the same ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

_PARTS = 1 << 32


@dataclass(frozen=True)
class Split:
    """A share of the users.

    Attributes:
        label: the label whose version answers them.
        percent: of all users, above 0 and at most 100.
    """

    label: str
    percent: float


def parse_splits(texts: Sequence[str]) -> list[Split]:
    """Splits of the form LABEL=PERCENT.

    Raises:
        ValueError: one is of another form, a label comes twice, or the shares make more than 100.
    """
    splits = []
    for text in texts:
        label, _, number = text.partition("=")
        try:
            percent = float(number.removesuffix("%"))
        except ValueError:
            percent = 0.0
        if not label or not 0 < percent <= 100:
            raise ValueError(f"a split must be LABEL=PERCENT, such as canary=5, not {text}")
        splits.append(Split(label, percent))
    if len({split.label for split in splits}) < len(splits):
        raise ValueError("a label may have one split only")
    if sum(split.percent for split in splits) > 100:
        raise ValueError("the splits must not make more than 100 per cent")
    return splits


def label_of(user_id: str, splits: Sequence[Split]) -> str | None:
    """The label whose version answers a user; None for the default.

    A user's place depends on the id alone, so that every worker and every server agrees on it. A share that grows keeps
    the users it had, and takes others from the shares after it.
    """
    place = int.from_bytes(blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=4, person=b"split").digest())
    end = 0.0
    for split in splits:
        end += split.percent / 100 * _PARTS
        if place < end:
            return split.label
    return None
