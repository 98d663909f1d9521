"""Vulkan for machines without a GPU.

`scripts/setup/software_vulkan.py` unpacks Mesa's software driver, and the shared libraries that rendering needs and
the system lacks, into a private folder; `use_software_vulkan` makes this process find them. Run as a program, this
module renders one frame and prints, as one JSON object, what rendered it.
"""

import ctypes
import json
import os
import struct
import warnings
from importlib.util import find_spec
from pathlib import Path

from .cache import cache_root

DRIVER_VARIABLES = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES")
_DRIVER_FOLDERS = ("/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/usr/share/vulkan/icd.d")


def software_folder() -> Path:
    """Where the private driver lives: `$VLA_RAZOR_CACHE/vulkan`, by default under `~/.cache/vla_razor`."""
    return cache_root() / "vulkan"


def use_software_vulkan() -> None:
    """Offers the private driver to Vulkan behind the system's own; call it before sapien or mani_skill is imported.

    Where the private folder is absent the system's drivers are left to themselves, and a choice of driver that the
    user made in the environment stands.
    """
    warnings.filterwarnings("ignore", "Failed to find system libvulkan", UserWarning)  # sapien brings its own loader
    folder = software_folder()
    driver = folder / "lvp_icd.json"
    if not driver.is_file():
        return
    # LD_LIBRARY_PATH is read only when a process starts; a library already loaded satisfies whoever asks for its name.
    for name in (folder / "preload.txt").read_text().split():
        ctypes.CDLL(str(folder / "lib" / name))
    if not any(os.environ.get(name) for name in DRIVER_VARIABLES):
        # Behind the system's, so that a GPU is never hidden; those that do not load or are too old are passed over.
        found = [path for place in _DRIVER_FOLDERS for path in sorted(Path(place).glob("*.json"))]
        sapien = find_spec("sapien")
        if sapien and sapien.origin and not any("nvidia" in path.name for path in found):
            found.append(Path(sapien.origin).parent / "vulkan_library" / "nvidia_icd.json")  # sapien's own stand-in
        os.environ["VK_DRIVER_FILES"] = ":".join(map(str, [*found, driver]))


def render_one_frame() -> dict[str, str]:
    """Renders a box and names what did it: keys `device` and `driver`.

    Raises:
        RuntimeError: no usable Vulkan device, or an empty picture.
        ImportError: sapien or OpenCV, or a shared library that one of them needs, is missing.
    """
    use_software_vulkan()
    import cv2  # noqa: F401  (mani_skill imports it, and it needs libraries that a bare machine lacks)
    import sapien

    scene = sapien.Scene([sapien.physx.PhysxCpuSystem(), sapien.render.RenderSystem()])
    scene.set_ambient_light([0.5, 0.5, 0.5])
    builder = scene.create_actor_builder()
    builder.add_box_visual(half_size=[0.1, 0.1, 0.1])  # pyright: ignore[reportArgumentType]
    builder.build_static(name="box")
    camera = scene.add_camera("camera", width=32, height=32, fovy=1.0, near=0.01, far=10.0)
    camera.set_entity_pose(sapien.Pose([-0.5, 0.0, 0.0]))
    scene.update_render()
    camera.take_picture()
    if not camera.get_picture("Color")[16, 16, :3].any():
        raise RuntimeError("the Vulkan device rendered an empty picture")
    summary = sapien.render.get_device_summary()
    return next((d for d in _devices() if d["device"] in summary), {"device": summary.strip(), "driver": ""})


def _devices() -> list[dict[str, str]]:
    """Every Vulkan device, asked of the loader that sapien uses. The structures are those of the Vulkan 1.2 headers."""
    vulkan = ctypes.CDLL(os.environ.get("SAPIEN_VULKAN_LIBRARY_PATH", "libvulkan.so.1"))
    application = ctypes.create_string_buffer(struct.pack("@iPPIPII", 0, 0, 0, 0, 0, 0, 1 << 22 | 2 << 12))
    create_info = ctypes.create_string_buffer(
        struct.pack("@iPIPIPIP", 1, 0, 0, ctypes.addressof(application), 0, 0, 0, 0)
    )
    instance, count = ctypes.c_void_p(), ctypes.c_uint32()
    if vulkan.vkCreateInstance(create_info, None, ctypes.byref(instance)) != 0:
        return []
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
    handles = (ctypes.c_void_p * count.value)()
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), handles)
    devices = []
    for handle in handles:
        about = ctypes.create_string_buffer(struct.pack("@iPI", 1000196000, 0, 0), 1024)  # of the driver
        properties = ctypes.create_string_buffer(struct.pack("@iP", 1000059001, ctypes.addressof(about)), 4096)
        vulkan.vkGetPhysicalDeviceProperties2(ctypes.c_void_p(handle), properties)
        (device,) = struct.unpack_from("@20x256s", properties, struct.calcsize("@iP"))
        name, info = struct.unpack_from("@256s256s", about, struct.calcsize("@iPI"))
        device, name, info = (text.split(b"\0")[0].decode() for text in (device, name, info))
        devices.append({"device": device, "driver": f"{name} {info}"})
    vulkan.vkDestroyInstance(instance, None)
    return devices


if __name__ == "__main__":
    print(json.dumps(render_one_frame()))
