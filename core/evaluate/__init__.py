"""The evaluation trade: metrics, measuring mixes, reports."""
