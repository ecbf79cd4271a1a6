# SPDX-FileCopyrightText: 2026 the distcxr authors
# SPDX-License-Identifier: Apache-2.0
"""Distributed multi-GPU training for chest X-ray classification."""

__version__ = "0.1.0"
