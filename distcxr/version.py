# SPDX-FileCopyrightText: 2026 the distcxr authors
# SPDX-License-Identifier: Apache-2.0
"""The version, where modules of the package find it without the package itself, which offers what they make."""

__version__ = "0.1.0"
