"""What the server says of itself: metrics, traces and log lines about requests. ``observer`` is what others call."""
