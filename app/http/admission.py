"""AdmissionControl: how many rows the service has promised to work on. One too many is refused at once, never queued silently."""

from steering.errors import Overloaded


class AdmissionControl:
    """A count of rows under way, bounded by `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0

    def lease(self) -> "Admission":
        """A lease without rows yet; whoever made it closes it."""
        return Admission(self)

    def change(self, rows: int) -> None:
        """Takes (or gives back, when negative) rows. Raises Overloaded when they would not fit."""
        if rows > 0 and self.taken + rows > self.limit:
            raise Overloaded(f"all {self.limit} places are taken; try again shortly")
        self.taken += rows


class Admission:
    """The rows of one request."""

    def __init__(self, permits: AdmissionControl) -> None:
        self._permits, self._rows = permits, 0

    def take(self, rows: int) -> None:
        """Makes sure this request holds `rows` rows. Raises Overloaded."""
        self._permits.change(max(rows - self._rows, 0))
        self._rows = max(rows, self._rows)

    def close(self) -> None:
        """Gives everything back; harmless when repeated."""
        self._permits.change(-self._rows)
        self._rows = 0
