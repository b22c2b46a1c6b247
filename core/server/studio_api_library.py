"""The library over HTTP: the base, adapters and saved mixes."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from core.engine.resident_base import BaseInfo
from core.server.access import Role, require
from core.server.studio_api_mixes import find_mix
from core.server.studio_api_models import AdapterView, BaseView, DeletedView, EngineOf, MixView, form

router = APIRouter(prefix="/api", tags=["library"])


class NewMix(BaseModel):
    """A mix to save."""

    model_config = form(name="Calm", mix="notes-8c2d=0.7,tone-7d1e=1")
    name: str = Field(max_length=120)
    mix: str = Field(max_length=4000, description="Adapters by id or name with weights, tilts and gates.")


@router.get("/base", response_model=BaseView, summary="Show the resident base",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def get_base(engine: EngineOf) -> BaseInfo:
    """The base that every adapter is mixed on."""
    return engine.bases.current()


@router.get("/adapters", response_model=list[AdapterView], summary="List the adapters",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def list_adapters(engine: EngineOf) -> list[AdapterView]:
    """All adapters of the library, the newest first."""
    return [AdapterView.of(adapter, engine) for adapter in engine.library.adapters()]


@router.get("/adapters/{adapter_id}", response_model=AdapterView, summary="Show an adapter",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def get_adapter(adapter_id: str, engine: EngineOf) -> AdapterView:
    """One adapter."""
    return AdapterView.of(engine.library.adapter(adapter_id), engine)


@router.get(
    "/adapters/{adapter_id}/download",
    response_class=FileResponse,
    responses={
        200: {
            "description": "A zip file in PEFT's layout.",
            "content": {
                "application/zip": {"schema": {"type": "string", "format": "binary"}, "example": "PK"}
            },
        }
    },
    summary="Download an adapter",
    dependencies=[Depends(require(Role.OWNER))],
)
def download_adapter(adapter_id: str, engine: EngineOf) -> FileResponse:
    """The folder of an adapter as a zip file, with its checksums."""
    adapter = engine.library.adapter(adapter_id)
    path = engine.library.archive(adapter.id)
    return FileResponse(path, media_type="application/zip", filename=f"{adapter.id}.zip")


@router.delete("/adapters/{adapter_id}", response_model=DeletedView, summary="Delete an adapter",
               dependencies=[Depends(require(Role.OWNER))])  # fmt: skip
def delete_adapter(adapter_id: str, engine: EngineOf) -> DeletedView:
    """Moves an adapter to the trash."""
    item = engine.library.delete("adapters", adapter_id)
    return DeletedView(deleted=adapter_id, entry=item.entry)


@router.get("/mixes", response_model=list[MixView], summary="List the saved mixes",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def list_mixes(engine: EngineOf) -> list[MixView]:
    """All saved mixes, the oldest first."""
    return [MixView.of(mix) for mix in engine.library.mixes()]


@router.post("/mixes", status_code=201, response_model=MixView, summary="Save a mix",
             dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def save_mix(body: NewMix, engine: EngineOf) -> MixView:
    """Saves a mix under a name that no other mix has."""
    mix = find_mix(engine, body.mix)
    return MixView.of(engine.library.save_mix(body.name, mix.weights, mix.tilt, mix.auto))


@router.get("/mixes/{mix_id}", response_model=MixView, summary="Show a saved mix",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def get_mix(mix_id: str, engine: EngineOf) -> MixView:
    """One saved mix, with warnings about adapters that have changed."""
    return MixView.of(engine.library.mix(mix_id))


@router.delete("/mixes/{mix_id}", response_model=DeletedView, summary="Delete a saved mix",
               dependencies=[Depends(require(Role.OWNER))])  # fmt: skip
def delete_mix(mix_id: str, engine: EngineOf) -> DeletedView:
    """Moves a saved mix to the trash."""
    item = engine.library.delete("mixes", mix_id)
    return DeletedView(deleted=mix_id, entry=item.entry)
