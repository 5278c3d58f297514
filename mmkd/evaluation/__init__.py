"""Metrics. Importing this package registers them into ``mmdet.registry.METRICS``."""

from mmkd.evaluation.f1_metric import CocoF1Metric

__all__ = ['CocoF1Metric']
