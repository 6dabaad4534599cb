"""Checkpoints have one format for all stages and strategies. They are written aside, synced, and published by a rename.

A checkpoint is a folder `<stage number>-<stage>-step=<step of the stage>.ckpt`:

    manifest.json   list of the contents, with bytes and digest of every other file (format below)
    config.yaml     resolved config of the run
    state.pt        loops, callbacks, schedule, stream position, optimizer groups (torch.save, weights only)
    weights-RRRRR-NN.safetensors     pieces of the weights from rank R: fp32 masters of trained weights, other weights
    optimizer-RRRRR-NN.safetensors   pieces of the optimizer's moments from rank R; keys are "exp_avg/<parameter>"

The format does not depend on the strategy or the number of ranks. A tensor is a list of *pieces*, runs of the flattened
tensor, each under a key in one of the files; the key of a piece that is not the whole tensor is "<name>#<start>". A
single process and DDP's first rank write whole tensors; a rank of ZeRO writes the pieces that it updates. Saving
gathers nothing, and a rank that resumes reads the pieces that overlap its share. So a run may resume on another number
of ranks or under another strategy.

manifest.json has
    format          2; format 1 has no digest of the manifest itself
    family, stage, stage_number, stage_step, step (through all stages), strategy, ranks
    folder          folder in which the run was launched; relative paths of its config start there
    data            source of the stage -> digest of its files, see `lit_mm.documents.sources.digest`
    parts           part -> names of all its parameters, stored or not, in the model's order
    files           file -> {"bytes", "blake2b"}
    weights         name -> {"shape", "dtype", "pieces": [[file, key, start, count], ...]}; names as in `state_dict`
    moments         "<moment>/<name>" -> entry as in weights
    steps           name -> optimizer steps of the parameter
    frozen          part -> {"origin", "digests": name -> digest} for parts that are *not* stored, because this run has
                    not trained them. They are loaded from their origin (the part's `weights`) and must have these
                    digests; "" is the digest of a part that no stage has read, and that was therefore never loaded
    blake2b         digest of all bytes before it in manifest.json

A folder that ends in .part is not published. Nothing reads it, and the next save removes it.
"""
