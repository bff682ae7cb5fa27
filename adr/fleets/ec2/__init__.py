"""The fleet on EC2 and its parts, from the wish to the end.

::

    fleet        the seam                       launch       carries out a plan
    plan         what a launch would do         launchnotes  repeats it safely
    words        the same in words              sending      talks to EC2 about it
    images       types and machine images       userdata     what an instance does by itself
    sizes        how many, how large            instances    finds and changes instances
    prices       what they cost                 leftovers    removes all else
    groups       security groups                orphans      finds instances without a runner
    requests     what is sent                   refusals     what EC2's errors mean
"""
