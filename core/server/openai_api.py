"""OpenAI's API: models, chat completions and completions, under any mix."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
