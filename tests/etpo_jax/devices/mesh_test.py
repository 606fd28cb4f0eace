"""Values that --mesh may have, for devices that are there and for planned ones."""

import pytest

from env.base import UsageError
from etpo_jax.devices.mesh import abstract_mesh, axis_sizes, build_mesh


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("", (8, 1)),
        ("fsdp:4,tensor:2", (4, 2)),
        ("tensor:2, fsdp:4", (4, 2)),
        ("tensor:16", (1, 16)),
    ],
)
def test_sizes_of_the_axes(text, sizes):
    assert axis_sizes(text, 8) == sizes


@pytest.mark.parametrize("text", ["data:2", "fsdp", "fsdp:0", "fsdp:-1", "fsdp:two", "fsdp:2;"])
def test_other_texts_are_one_clear_line(text):
    with pytest.raises(UsageError, match=rf"--mesh={text}: .* must be AXIS:SIZE"):
        axis_sizes(text, 8)


def test_a_mesh_of_absent_devices():
    assert dict(abstract_mesh("fsdp:64,tensor:4").shape) == {"fsdp": 64, "tensor": 4}
    assert dict(abstract_mesh().shape) == dict(build_mesh().shape)
    with pytest.raises(UsageError, match="256 devices wanted, 1 present"):
        build_mesh("fsdp:64,tensor:4")
