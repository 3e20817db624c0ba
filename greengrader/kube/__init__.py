"""Runs in pods of a Kubernetes cluster.

A run's files and results travel by rclone (`transport`); its pod is made from pod.yaml (`podspec`), in the greenest
region that can take it (`region`), followed by one watch of the namespace, and judged by what the cluster says of it
(`pod`). `cluster` is the only importer of the kubernetes package. `python3 -m greengrader.kube` is pod.sh.
"""
