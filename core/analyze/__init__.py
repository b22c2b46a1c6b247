"""Analysis of mixes: compares weights and outputs, attributes answers, maps and searches weights."""
