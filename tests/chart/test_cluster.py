"""The chart on a real API server (no nodes): accepted as a whole, its policies at work, upgraded, uninstalled."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from slipway_local.kubernetes.admin_client import AdminError
from slipway_local.kubernetes.binaries import MissingBinaryError, find
from slipway_local.kubernetes.control_plane import ControlPlane
from slipway_local.kubernetes.programs import Options

from .conftest import CHART, NAMESPACE, RELEASE, VALUE_SETS, Helm, Objects
