"""What requests go by: which versions answer, and which of them one that names a label, or none, gets."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from shortlist_server.errors import ModelNotFound, NoModelReady, shown
from shortlist_server.model.folder import LoadedModel


@dataclass(frozen=True)
class Serving:
    """The versions that answer. It is replaced as a whole, so that each request sees one state of it.

    Attributes:
        models: the versions by number.
        labels: label to version, loaded or not.
        default: what answers when nothing is named; None before a version is loaded.
    """

    models: Mapping[int, LoadedModel] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    default: LoadedModel | None = None

    def the_default(self) -> LoadedModel:
        """The version that answers when none is named.

        Raises:
            NoModelReady: none is loaded yet.
        """
        if self.default is None:
            raise NoModelReady
        return self.default

    def named(self, version: int | None, label: str | None) -> LoadedModel:
        """The version that is named, by its number or by a label.

        Raises:
            ModelNotFound: it is not loaded.
            NoModelReady: none is loaded yet.
        """
        self.the_default()
        number = version
        if label is not None:
            if label not in self.labels:
                raise ModelNotFound(label, f"no version bears the label {shown(label)}")
            number = self.labels[label]
        model = None if number is None else self.models.get(number)
        if model is None:
            name = f"version {number}" if label is None else f"version {number}, which bears the label {shown(label)},"
            loaded = ", ".join(map(str, sorted(self.models)))
            raise ModelNotFound(label or str(number), f"{name} is not loaded; loaded: {loaded}")
        return model

    def of_label(self, label: str | None) -> LoadedModel:
        """The version that bears a label, or the default while none that is loaded does.

        Raises:
            NoModelReady: none is loaded yet.
        """
        return self.models.get(self.labels.get(label or "", 0)) or self.the_default()
