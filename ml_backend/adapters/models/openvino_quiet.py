"""OpenVINO without its reports of use to Google Analytics: nothing leaves our users' machines."""

import sys

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # where it is missing there is a stub

import openvino as ov  # noqa: E402

__all__ = ["ov"]
