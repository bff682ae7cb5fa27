"""Compute the pressures in a water distribution network with EPANET.

Usage: python3 pressures.py NETWORK.inp

EPANET (Rossman, 2000: EPANET 2 Users Manual, EPA/600/R-00/057) solves the flow through pipes,
pumps and valves over time. It is run here through the Python package wntr, which brings the
EPANET 2.2 library with it. The pressures go to NETWORK.csv in the current folder: one row per
time step (seconds since the start), one column per node, in metres of water.

Everything EPANET writes on the way goes to a temporary folder of its own, so that many networks
can be run at the same time.
"""

import sys
import tempfile
import warnings
from pathlib import Path


def pressures(network, folder):
    """Run EPANET on a network file and return its pressures as a table.

    Parameters
    ----------
    network : Path
        EPANET input file.
    folder : str
        Existing folder for EPANET's temporary files.

    Returns
    -------
    pandas.DataFrame
        Pressure in metres of water, by time in seconds and by node.
    """
    import wntr

    model = wntr.network.WaterNetworkModel(str(network))
    simulator = wntr.sim.EpanetSimulator(model)
    # Without convergence_error a simulation that broke off would pass for a complete one.
    results = simulator.run_sim(file_prefix=str(Path(folder, "epanet")), convergence_error=True)
    return results.node["pressure"]


def main(arguments):
    """Write the pressures of the named network, or say on stderr why there are none."""
    if len(arguments) != 1:
        print("usage: python3 pressures.py NETWORK.inp", file=sys.stderr)
        return 2
    network = Path(arguments[0])
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="epanet-") as folder:
        try:
            table = pressures(network, folder)
        except (
            Exception
        ) as error:  # wntr and EPANET raise many kinds; each spoils this network only
            causes = [error]
            while causes[-1].__cause__ is not None:
                causes.append(causes[-1].__cause__)
            print(f"{network}: no pressures", file=sys.stderr)
            for cause in causes:
                print(f"  {type(cause).__name__}: {cause}", file=sys.stderr)
            return 1
    target = Path(network.stem + ".csv")
    partial = Path(network.stem + ".csv.part")
    table.to_csv(partial, index_label="time")
    partial.replace(target)
    print(f"{network}: {table.shape[0]} time steps, {table.shape[1]} nodes -> {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
