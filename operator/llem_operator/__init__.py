"""The Kubernetes operator of llem: reconciles EnergyStudy and EnergyExperiment (arrives with the cluster part)."""
