"""One room for each tab: a frozen dataclass of its components, `build()`, `wire()` and plain handlers."""
