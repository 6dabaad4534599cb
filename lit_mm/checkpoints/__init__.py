"""Checkpoints: one kind for all stages and strategies, written aside, synced, published last by one rename.

A checkpoint is a folder `<stage number>-<stage>-step=<step of the stage>.ckpt`:

    manifest.json   what is in it, and bytes and digest of every other file (format below)
    config.yaml     the resolved config of the run
    state.pt        loops, callbacks, schedule, stream position, optimizer groups (torch.save, weights only)
    weights-RRRRR-NN.safetensors     what rank R held of the weights: fp32 masters of what learns, and what else is kept
    optimizer-RRRRR-NN.safetensors   the same of the optimizer's moments; keys are "exp_avg/<parameter>"

It belongs to no strategy and no number of ranks. A tensor is a list of *pieces*: runs of the flattened tensor, each
under a key in one of the files; the key of a piece that is not the whole tensor is "<name>#<start>". A single process
writes whole tensors, DDP's first rank too, a rank of ZeRO the pieces that it updates; nothing is gathered to save, and
a rank that resumes reads the pieces that overlap what it is to hold. So resuming on other ranks, or under another
strategy, is just loading.

manifest.json has
    format          2; format 1 has no digest of the manifest itself
    family, stage, stage_number, stage_step, step (through all stages), strategy, ranks
    folder          where the run was launched: relative paths of its config start there
    data            source of the stage -> digest of its files, see `lit_mm.documents.sources.digest`
    parts           part -> names of all its parameters, stored or not, in the model's order
    files           file -> {"bytes", "blake2b"}
    weights         name -> {"shape", "dtype", "pieces": [[file, key, start, count], ...]}; names as in `state_dict`
    moments         "<moment>/<name>" -> the same; steps: name -> optimizer steps that the parameter has had
    frozen          part -> {"origin", "digests": name -> digest}: parts that are *not* stored, because nothing in this
                    run has trained them. They are loaded from their origin (the part's `weights`), and must be the
                    same; "" stands for the digest of a part that no stage had read yet, and so nothing had loaded
    blake2b         digest of all that stands before it in manifest.json

A folder that ends in .part was not published: nothing ever reads it, the next save clears it away.
"""
