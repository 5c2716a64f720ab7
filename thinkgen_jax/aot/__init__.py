# SPDX-License-Identifier: Apache-2.0
"""Ahead of time: the programs of a config, compiled for machines that are not there, and read."""
